"""What it takes to make ONNX Runtime sessions of a model: one more for some sizes, one for calls with no rows."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fusion_onnx.file_format import DOMAIN

from . import _ort, _providers, fused
from ._errors import SessionError
from ._model_file import ModelHeader
from ._placement import RECORD_KEY, check_all_on_cuda
from ._probe import CPU, CUDA, TURNS

_FATAL = 4  # ONNX Runtime's level of what it prints before it ends the process


class Recipe(NamedTuple):
    """What makes one more ONNX Runtime session of the model."""

    ort: Any
    source: str | bytes
    plan: _providers.Plan | None
    where: str
    threads: int | None
    spin: bool
    programs: tuple[fused.Program, ...] = ()

    def make(self, options: Any) -> Any:
        """Make a session; no plan: the options hold the providers."""
        if self.threads is not None:
            _ort.set_threads(options, self.threads)
        if not self.spin:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(RECORD_KEY, "1")
        only_cuda = self.plan is not None and self.plan.names == [CUDA]
        if self.plan is not None and self.plan.strict and not only_cuda:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            if self.programs:
                options.log_severity_level = max(options.log_severity_level, _FATAL)  # a refusal is no error to show
                fused.register(options, self.programs)
            providers = self.plan and _providers.hand_over(self.ort, options, self.plan)
            # enable_fallback=0: otherwise a provider that fails is replaced by the CPU, then and in every later run
            with TURNS if self.plan is not None and CUDA in self.plan.names else contextlib.nullcontext():
                session = self.ort.InferenceSession(self.source, options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise SessionError(_providers.explain(error, self.plan, self.where)) from error
        if self.plan is not None:
            _providers.check(self.plan, session.get_providers())
        if only_cuda:  # ONNX Runtime's own check refuses what it puts on the CPU by design
            check_all_on_cuda(session, self.where)
        return session

    def static(self, sizes: Mapping[str, int], **cuda: object) -> Any:
        """Make one with these sizes of the axes, by name; `cuda`: more options for CUDA."""
        options = self.ort.SessionOptions()
        for axis, size in sizes.items():
            options.add_free_dimension_override_by_name(axis, size)
        plan = self.plan
        if plan is not None and cuda:
            providers = [
                (name, {**settings, **cuda} if name == CUDA else settings) for name, settings in plan.providers
            ]
            plan = plan._replace(providers=providers)
        return self._replace(plan=plan).make(options)


def fused_programs(
    source: str | bytes, header: ModelHeader, plan: _providers.Plan | None, fuse: bool | None, *, free: bool
) -> tuple[fused.Program, ...]:
    """Return the programs that fused kernels run in a session.

    free: the session's options are ours to fill.

    Raises:
        SessionError: `fuse` is True, and there can be no kernels.
    """
    if fuse is False:
        return ()
    reason = "session_options were given" if not free else ""
    if not reason and (plan is None or plan.names != [CPU]):
        reason = "fused kernels compute on the CPU provider alone; ask for providers='cpu'"
    reason = reason or fused.why_not_fused()
    if not reason:
        return fused.programs(source) if any(domain == DOMAIN for domain, _ in header.functions) else ()
    if fuse:
        raise SessionError(f"fuse=True: {reason}")
    return ()
