"""`verify`: a model against the module it was exported from, at several sizes, and on hostile values on request."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_onnx.contract import Fusion
from fusion_onnx.contract.fusion import WrittenFusion
from fusion_onnx.contract.layer import Isolated, bare_fusion
from fusion_onnx.file_format import forms_in
from fusion_onnx.runtime import Providers, Session
from fusion_onnx.verification import trials
from fusion_onnx.verification.arguments import Arguments, ExampleInputs, arguments, call, opened
from fusion_onnx.verification.compare import judge
from fusion_onnx.verification.eval_mode import EvalMode, tensors_in
from fusion_onnx.verification.known import OPERATORS, Difference, in_network
from fusion_onnx.verification.locate.search import located
from fusion_onnx.verification.randomness import why_not_repeatable
from fusion_onnx.verification.shapes import false_shapes
from fusion_onnx.verification.subject import FusionCall, Subject
from fusion_onnx.verification.tolerance import BITS, DERIVED, SAME_BITS, MeasuredTolerance, Tolerance, array, derived
from fusion_onnx.verification.trials import Trial
from fusion_onnx.verification.verdict import Finding, Verdict

if TYPE_CHECKING:
    from fusion_onnx.runtime import ModelLike

FEW, DOUBT = 4, 0.5
"""So many shadows say enough where the largest error is below this share of what they allow."""


def verify(
    module: torch.nn.Module,
    model: "ModelLike",
    inputs: ExampleInputs | None = None,
    providers: Providers = "cpu",
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
    file = Model(model, providers, (*OPERATORS, *known))
    inputs = _drawn(module, file.session) if inputs is None and not kwargs else inputs
    example = Arguments(arguments(module, inputs, kwargs))
    # the module's random numbers are not the caller's
    with torch.random.fork_rng(), EvalMode(module) as run:
        subject = Subject(run, example)
        return _verdict(subject, file, providers, battery)


class Model:
    """The file, and what runs it: ONNX Runtime's own operators, and the fused kernels where there are any.

    known: which differences are documented. forms: in which form the file has each fusion.
    """

    def __init__(self, file: "ModelLike", providers: Providers, known: tuple[Difference, ...]) -> None:
        self.file, self.known = file, known
        session = Session(file, providers, spin=False)  # PyTorch runs between its calls
        self.fused = session if session.fused else None
        self.session = Session(file, providers, fuse=False, spin=False) if self.fused else session
        self.forms = forms_in(session.metadata)

    def run(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the outputs of both; the same where there are no kernels."""
        outputs = self.session.run(*tensors)
        return outputs, self.fused.run(*tensors) if self.fused else outputs


def _verdict(subject: Subject, model: Model, providers: Providers, battery: bool) -> Verdict:
    findings, rule = _findings(subject, model, battery)
    if battery and subject.call is None and all(finding.passed for finding in findings):
        # each fusion of a network to its own bound and its own weights: what an output may lose hides more
        location = located(subject, model.file, providers)
        if location and location.fusion:
            findings.append(_broken("fusion by fusion", "fusion", str(location)))
    return Verdict(tuple(findings), tuple(model.session.providers), rule)


def _findings(subject: Subject, model: Model, battery: bool) -> tuple[list[Finding], str]:
    infos = model.session.inputs
    count = len(subject.arguments.places)
    if count != len(infos):
        detail = f"the model takes {len(infos)} inputs, the module is given {count} tensors"
        return [_broken("the inputs", "count", detail)], DERIVED
    state = torch.get_rng_state()
    result = call(subject.run, subject.arguments.args)
    drew = not torch.equal(state, torch.get_rng_state())
    once = tensors_in(result)
    if why := why_not_repeatable(subject.run, subject.arguments.args, once, drew):
        return [_broken("as given", "eager", why)], DERIVED
    if wrong := _misnamed(result, [info.name for info in model.session.outputs]):
        return [_broken("the outputs", "names", wrong)], DERIVED
    chooser = Judge(subject, model.session.providers, model.forms)
    findings: list[Finding] = []
    compared = False
    for trial in _trials(subject, model, battery):
        try:
            eager, trial = (once, trial) if trial.arguments is subject.arguments else _run(subject, trial)
        except Exception as error:
            if trial.optional:
                continue  # such as a variance over one row: not in the module's domain
            findings.append(_broken(trial.name, "eager", f"the module itself does not run on this: {error}"))
            continue
        tensors = trial.arguments.tensors
        try:
            both = model.run([t.detach().cpu().numpy() for t in tensors] if trial.numpy else tensors)
        except Exception as error:
            findings.append(_broken(trial.name, "run", str(error)))
            continue
        if len(eager) != len(both[0]):
            detail = f"the model gives {len(both[0])} outputs, eager {len(eager)}"
            findings.append(_broken(trial.name, "count", detail))
            continue
        shapes = [[v.shape for v in values] for values in (tensors, both[0])]
        if false := false_shapes(infos, model.session.outputs, *shapes):
            findings.append(_broken(trial.name, "declared", " ".join(false)))
            continue
        compared = compared or any(np.isfinite(array(y)).any() for y in eager)
        findings += _judged(chooser, model, trial, eager, both)
    if not compared and any(finding.shape and 0 not in finding.shape for finding in findings):
        findings.append(_broken("all", "nan", "no entry of any output is finite, so nothing was compared"))
    return findings, chooser.rule


def _trials(subject: Subject, model: Model, battery: bool) -> list[Trial]:
    infos, limits = model.session.inputs, model.session.limits
    selection = trials.sizes(subject, infos, limits) + trials.masks(subject)
    selection += trials.nonfinite(subject, _keeps_infinities(subject.module, model.forms))
    if battery:
        selection += trials.hostile(subject, infos)
        selection += trials.many_rows(subject, infos, limits)
        selection += trials.layouts(subject, infos)
    return selection


def _keeps_infinities(module: torch.nn.Module, forms: Mapping[str, str]) -> bool:
    """Return whether the forms in which the module's fusions are written give Inf and NaN where eager does.

    A fusion alone has a bound that says where its form does not.
    """
    if bare_fusion(module) is not None:
        return True
    lax = {
        name
        for part in module.modules()
        if isinstance(part, (Fusion, Isolated))
        for name, form in part.forms().items()
        if not form.propagates_inf
    }
    return lax.isdisjoint(forms.values())


def _run(subject: Subject, trial: Trial) -> tuple[list[torch.Tensor], Trial]:
    """Run the module on a trial, or where it is not made for that, on the first other that it is made for."""
    if not trial.finite:
        with _plain_attention():
            return subject.outputs(trial.arguments), trial
    try:
        return subject.outputs(trial.arguments), trial
    except Exception:
        for other in trial.instead:
            with contextlib.suppress(Exception):
                return subject.outputs(other.arguments), other
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
    chooser: "Judge", model: Model, trial: Trial, eager: list[torch.Tensor], both: tuple[list[Any], list[Any]]
) -> list[Finding]:
    """Hold both runs of a trial to the tolerance: from few shadows where they leave no doubt, else from all."""
    infos = model.session.outputs
    findings: list[Finding] = []
    for tolerances in chooser.tolerances(trial, eager):
        findings = [
            _worse(trial.name, info.name, a, b, c, tolerance)
            for info, a, b, c, tolerance in zip(infos, eager, *both, tolerances, strict=True)
        ]
        if all(finding.passed and finding.ratio < DOUBT for finding in findings):
            break
    if all(finding.passed for finding in findings):
        return findings
    trial_of_file = model.file, model.session.providers, trial.name, trial.arguments.tensors
    known = in_network(model.known, *trial_of_file)
    excused = dict.fromkeys(("nan", "inf", "error"), known)
    if known and any(finding.failed == "shape" for finding in findings):
        excused["shape"] = in_network([d for d in model.known if d.sizes], *trial_of_file)
    return [replace(f, known=excused.get(f.failed, {}).get(f.output, "")) for f in findings]


def _worse(trial: str, name: str, eager: torch.Tensor, model: Any, fused: Any, tolerance: Tolerance) -> Finding:
    finding = judge(trial, name, eager, model, tolerance)
    if not finding.passed or fused is model:
        return finding
    by_kernel = judge(f"{trial}, fused", name, eager, fused, tolerance)
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
        self, subject: Subject, providers: Sequence[str], forms: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._subject, self._forms = subject, forms
        self._first, self._bits = None, False
        if subject.call is not None:
            written, xs, w = self._written(subject.call)
            self._first = derived(written, xs, w)
            self._bits = written.bitwise and list(providers) == ["CPUExecutionProvider"] and xs[0].dtype in SAME_BITS
        self._measured = MeasuredTolerance(subject.run.outputs, subject.module) if self._first is None else None

    @property
    def rule(self) -> str:
        """The rule, in words."""
        return BITS if self._bits else self._measured.rule if self._measured else DERIVED

    def __call__(self, trial: Trial, eager: list[torch.Tensor]) -> list[Tolerance]:
        """Return the tolerance of each of eager's outputs on a trial."""
        return [*self.tolerances(trial, eager)][-1]

    def tolerances(self, trial: Trial, eager: list[torch.Tensor]) -> Iterator[list[Tolerance]]:
        """Give the tolerances, from more and more runs of a network: the last take decisions apart."""
        args = trial.arguments.args
        if self._measured is not None:
            yield self._measured(args, eager, trial.hostile, FEW)
            limits = self._measured(args, eager, trial.hostile)
            yield limits
            decisions = self._measured.decisions(args, eager)
            yield [replace(t, decisions=d) for t, d in zip(limits, decisions, strict=True)]
            return
        tolerance = self._first
        if trial.arguments is not self._subject.arguments:
            call = self._subject.call_with(trial.arguments)
            tolerance = tolerance if call is None else derived(*self._written(call))
        assert tolerance is not None
        yield [replace(tolerance, rule=BITS, bits=True) if self._bits else tolerance]

    def _written(self, call: FusionCall) -> tuple[WrittenFusion, list[torch.Tensor], torch.Tensor | None]:
        """Return a bare fusion's call in the form that the file says it has."""
        return call.fusion.as_written(self._forms), call.xs, call.w


def _broken(trial: str, failed: str, detail: str) -> Finding:
    return Finding(trial, "", (), "", failed, detail, float("inf"), 0.0, float("inf"), ())


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
