"""`verify`: a model against the module it was exported from, at several sizes, and on hostile values on request."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fusion_onnx.contract import Fusion
from fusion_onnx.forms import forms_in
from fusion_onnx.layer import bare_fusion
from fusion_onnx.runtime import Session
from fusion_onnx.verification import trials
from fusion_onnx.verification.arguments import arguments, call, opened
from fusion_onnx.verification.compare import judge
from fusion_onnx.verification.declared import false_shapes
from fusion_onnx.verification.known import OPERATORS, Difference, in_network
from fusion_onnx.verification.randomness import drawing, repeats
from fusion_onnx.verification.repeatable import Repeatable
from fusion_onnx.verification.tolerance import (
    BITS,
    DERIVED,
    Measured,
    Tolerance,
    array,
    bare_call,
    derived,
    outputs,
)
from fusion_onnx.verification.trials import Trial, tensors_of
from fusion_onnx.verification.verdict import Finding, Verdict

FEW, DOUBT = 4, 0.5
"""So many shadows say enough where the largest error is below this share of what they allow."""
_BITWISE = (torch.float16, torch.float32, torch.float64)


def verify(
    module: torch.nn.Module,
    model: Any,
    inputs: Any = None,
    providers: Any = "cpu",
    *,
    kwargs: Mapping[str, Any] | None = None,
    battery: bool = False,
    known: Sequence[Difference] = (),
) -> Verdict:
    """Compare an ONNX model with the eager module, output by output, at the inputs' own and at other sizes.

    Checked in this order: number and names of outputs, dtype, shape, NaN positions, Inf positions and signs, then the
    error. A fusion alone is held to its strategy's bound, or to the same bits; a network to what eager execution itself
    is measured to lose against float64. The model is run by ONNX Runtime's own operators, and where a session here
    would run fusions by fused kernels, by these as well; both are held to the same.

    Args:
        module: the module, or the torch.export.ExportedProgram, that the model was exported from.
        model: a path, bytes, an onnx.ModelProto, or the result of `export`.
        inputs: a tuple of the module's positional arguments, or a mapping of its keyword arguments; drawn at random
            from the model's input shapes if None.
        providers: as `Session` takes them.
        kwargs: keyword arguments beside positional ones.
        battery: also on hostile values (huge, tiny, subnormal, ties, NaN and Inf in each input, ...), on many rows, on
            inputs that are not contiguous, sliced, broadcast or in Fortran order, and a network fusion by fusion.
        known: documented differences, `verification.known.Difference`, beside `known.OPERATORS`: what one of them
            covers is said, and is no failure.

    Returns:
        Verdict: true if all passed; `.table()`, `.to_json()`, `.findings`.

    Raises:
        SessionError: the model cannot be loaded. FusionError: the inputs break a fusion's contract.
    """
    module = opened(module)
    session = Session(model, providers, spin=False)  # PyTorch runs between its calls
    fused = session if session.fused else None
    if fused:
        session = Session(model, providers, fuse=False, spin=False)
    args = arguments(module, _drawn(module, session) if inputs is None and not kwargs else inputs, kwargs)
    # the module's random numbers are not the caller's
    with torch.random.fork_rng(), evaluating(module) as run:
        findings, rule = _findings(run, Models(model, session, fused, (*OPERATORS, *known)), args, battery)
        if battery and bare_call(module, args) is None and all(finding.passed for finding in findings):
            findings += _fusion_by_fusion(module, model, args, providers)
    return Verdict(tuple(findings), tuple(session.providers), rule)


def evaluating(module: torch.nn.Module) -> Repeatable:
    """Put the module into eval mode, and back; called meanwhile, what is entered runs it and leaves no trace in it."""
    return Repeatable(module)


@dataclass(frozen=True)
class Models:
    """The file, and what runs it: ONNX Runtime's own operators, and the fused kernels where there are any.

    known: what of their differences is documented.
    """

    file: Any
    session: Session
    fused: Session | None
    known: tuple[Difference, ...]

    def run(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the outputs of both; the same where there are no kernels."""
        outputs = self.session.run(*tensors)
        return outputs, self.fused.run(*tensors) if self.fused else outputs


def _findings(run: Repeatable, models: Models, args: tuple[Any, ...], battery: bool) -> tuple[list[Finding], str]:
    module, session = run.module, models.session
    if len(tensors_of(args)) != len(session.inputs):
        detail = f"the model takes {len(session.inputs)} inputs, the module is given {len(tensors_of(args))} tensors"
        return [_broken("the inputs", "count", detail)], DERIVED
    state = torch.get_rng_state()
    result = call(run, args)
    drew = not torch.equal(state, torch.get_rng_state())
    once = tensors_of(result)
    if (operators := drawing(run, args) if drew else "") or not repeats(run, args, once):
        why = f": it draws random numbers in eval mode ({operators})" if operators else ""
        detail = f"the module gives different results for the same inputs{why}; nothing can be equal to it"
        return [_broken("as given", "eager", detail)], DERIVED
    if wrong := _misnamed(result, [info.name for info in session.outputs]):
        return [_broken("the outputs", "names", wrong)], DERIVED
    forms = forms_in(session.metadata)
    judged = Judge(run, args, session.providers, forms)
    tried = trials.sizes(module, session.inputs, args, session.limits)
    tried += trials.masks(args) + trials.nonfinite(session.inputs, args, _keeps_infinities(module, forms))
    if battery:
        tried += trials.hostile(run, session.inputs, args)
        tried += trials.many_rows(session.inputs, args, session.limits)
        tried += trials.layouts(session.inputs, args)
    found: list[Finding] = []
    compared = False
    for trial in tried:
        try:
            eager, trial = (once, trial) if trial.args is args else _run(run, trial)
        except Exception as error:
            if trial.optional:
                continue  # such as a variance over one row: not in the module's domain
            found.append(_broken(trial.case, "eager", f"the module itself does not run on this: {error}"))
            continue
        try:
            tensors = tensors_of(trial.args)
            both = models.run([t.detach().cpu().numpy() for t in tensors] if trial.numpy else tensors)
        except Exception as error:
            found.append(_broken(trial.case, "run", str(error)))
            continue
        if len(eager) != len(both[0]):
            found.append(_broken(trial.case, "count", f"the model gives {len(both[0])} outputs, eager {len(eager)}"))
            continue
        if false := false_shapes(
            session.inputs, session.outputs, *([v.shape for v in vs] for vs in (tensors, both[0]))
        ):
            found.append(_broken(trial.case, "declared", " ".join(false)))
            continue
        compared = compared or any(np.isfinite(array(y)).any() for y in eager)
        found += _judged(judged, models, trial, eager, both)
    if not compared and any(finding.shape and 0 not in finding.shape for finding in found):
        found.append(_broken("all", "nan", "no entry of any output is finite, so nothing was compared"))
    return found, judged.rule


def _keeps_infinities(module: torch.nn.Module, forms: Mapping[str, str]) -> bool:
    """Return whether the forms in which the module's fusions are written give Inf and NaN where eager does.

    A fusion alone has a bound that says where its form does not.
    """
    if bare_fusion(module) is not None:
        return True
    lax = {
        name
        for part in module.modules()
        if isinstance(part, Fusion) or type(part).__name__ == "Isolated"
        for name, form in part.forms().items()  # type: ignore[operator]
        if not form.infinities
    }
    return lax.isdisjoint(forms.values())


def _run(run: Repeatable, trial: Trial) -> tuple[list[torch.Tensor], Trial]:
    """Run the module on a trial, or where it is not made for that, on the first other that it is made for."""
    if not trial.finite:
        with _plain_attention():
            return outputs(run, trial.args), trial
    try:
        return outputs(run, trial.args), trial
    except Exception:
        for other in trial.instead:
            with contextlib.suppress(Exception):
                return outputs(run, other.args), other
        raise


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch from its fused attention, which gives 0 for some queries that have NaN, and NaN for others."""
    fused = torch.backends.cuda.flash_sdp_enabled()  # which is asked on the CPU, too
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_flash_sdp(fused)


def _judged(
    judged: "Judge", models: Models, trial: Trial, eager: list[torch.Tensor], both: tuple[list[Any], list[Any]]
) -> list[Finding]:
    """Hold both runs of a trial to the tolerance: from few shadows where they leave no doubt, else from all."""
    infos = models.session.outputs
    found: list[Finding] = []
    for tolerances in judged.tolerances(trial, eager):
        found = [
            _worse(trial.case, info.name, a, b, c, tolerance)
            for info, a, b, c, tolerance in zip(infos, eager, *both, tolerances, strict=True)
        ]
        if all(finding.passed and finding.ratio < DOUBT for finding in found):
            break
    if all(finding.passed for finding in found):
        return found
    given = models.file, models.session.providers, trial.case, tensors_of(trial.args)
    known = in_network(models.known, *given)
    excused = dict.fromkeys(("nan", "inf", "error"), known)
    if known and any(finding.failed == "shape" for finding in found):
        excused["shape"] = in_network([d for d in models.known if d.sizes], *given)
    return [replace(f, known=excused.get(f.failed, {}).get(f.output, "")) for f in found]


def _worse(case: str, name: str, eager: torch.Tensor, model: Any, fused: Any, tolerance: Tolerance) -> Finding:
    finding = judge(case, name, eager, model, tolerance)
    if not finding.passed or fused is model:
        return finding
    by_kernel = judge(f"{case}, fused", name, eager, fused, tolerance)
    return finding if by_kernel.passed else by_kernel


def _misnamed(result: Any, names: list[str]) -> str:
    """Say what is wrong with the outputs' names, where the module names them itself by returning a mapping of tensors.

    A model may have names of its own; the module's in another order are wrong, whatever their values are.
    """
    if not isinstance(result, Mapping):
        return ""
    keys = [str(key) for key, value in result.items() if value is not None]
    plain = [name if name in keys else name.removeprefix("output_") for name in names]
    return f"the model gives {plain}, eager {keys}" if sorted(plain) == sorted(keys) and plain != keys else ""


class Judge:
    """Chooses the tolerance: the same bits, the strategy's bound, or what rounding does to each entry of a network."""

    def __init__(
        self,
        run: Repeatable,
        args: tuple[Any, ...],
        providers: list[str],
        forms: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._module, self._forms = run.module, forms
        call = self._call(args)
        self._bits = (
            call is not None
            and call[0].bitwise
            and providers == ["CPUExecutionProvider"]
            and call[1][0].dtype in _BITWISE
        )
        self._args, self._first = args, None if call is None else derived(*call)
        self._measured = Measured(run, run.module) if self._first is None else None

    @property
    def rule(self) -> str:
        """The rule, in words."""
        return BITS if self._bits else self._measured.rule if self._measured else DERIVED

    def __call__(self, trial: Trial, eager: list[torch.Tensor]) -> list[Tolerance]:
        """Return the tolerance of each of eager's outputs on a trial."""
        return [*self.tolerances(trial, eager)][-1]

    def tolerances(self, trial: Trial, eager: list[torch.Tensor]) -> Iterator[list[Tolerance]]:
        """Give the tolerances, from more and more runs of a network: the last take decisions apart."""
        if self._measured is not None:
            yield self._measured(trial.args, eager, trial.hostile, FEW)
            limits = self._measured(trial.args, eager, trial.hostile)
            yield limits
            decisions = self._measured.decisions(trial.args, eager)
            yield [replace(t, decisions=d) for t, d in zip(limits, decisions, strict=True)]
            return
        call = None if trial.args is self._args else self._call(trial.args)
        tolerance = self._first if call is None else derived(*call)
        assert tolerance is not None
        yield [replace(tolerance, rule=BITS, bits=True) if self._bits else tolerance]

    def _call(self, args: tuple[Any, ...]) -> tuple[Fusion, list[torch.Tensor], torch.Tensor | None] | None:
        """Return the call of a bare fusion, in the form that the file says it has."""
        call = bare_call(self._module, args)
        return call and (call[0].as_written(self._forms), *call[1:])


def _fusion_by_fusion(module: torch.nn.Module, model: Any, args: tuple[Any, ...], providers: Any) -> list[Finding]:
    """Hold each fusion of a network to its own bound and its own weights: what a network's output may lose hides more.

    Other models than those exported here have no fusions in them, and are left alone.
    """
    from fusion_onnx.verification.locate import locate

    found = locate(module, model, args, providers)
    return [_broken("fusion by fusion", "fusion", str(found))] if found and found.fusion else []


def _broken(case: str, failed: str, detail: str) -> Finding:
    return Finding(case, "", (), "", failed, detail, float("inf"), 0.0, float("inf"), ())


def _drawn(module: torch.nn.Module, session: Session) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(2)
    tensors = []
    for info in session.inputs:
        dtype = getattr(torch, info.dtype)
        shape = [size if isinstance(size, int) else 5 for size in info.shape or ()]
        values = torch.randn(shape, generator=generator)
        tensors.append(values.to(dtype) if dtype.is_floating_point else values.abs().to(dtype))
    if isinstance(module, Fusion):
        count = len(tensors) - (1 if session.inputs[-1].name == "w" else 0)
        return (tensors[:count], *tensors[count:])
    return tuple(tensors)
