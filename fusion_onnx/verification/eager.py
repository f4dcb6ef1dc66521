"""`verify`: a model against the module it was exported from, at several sizes, and on hostile values on request."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fusion_onnx.contract import Fusion
from fusion_onnx.forms import forms_in
from fusion_onnx.runtime import Session
from fusion_onnx.verification import trials
from fusion_onnx.verification.compare import judge
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

_BITWISE = (torch.float16, torch.float32, torch.float64)


def verify(
    module: torch.nn.Module, model: Any, inputs: Any = None, providers: Any = "cpu", *, battery: bool = False
) -> Verdict:
    """Compare an ONNX model with the eager module, output by output, at the inputs' own and at other sizes.

    Checked in this order: number and names of outputs, dtype, shape, NaN positions, Inf positions and signs, then the
    error. A fusion alone is held to its strategy's bound, or to the same bits; a network to what eager execution itself
    is measured to lose against float64. The model is run by ONNX Runtime's own operators, and where a session here
    would run fusions by fused kernels, by these as well; both are held to the same.

    Args:
        module: the module the model was exported from.
        model: a path, bytes, an onnx.ModelProto, or the result of `export`.
        inputs: a tuple of the module's positional arguments; drawn at random from the model's input shapes if None.
        providers: as `Session` takes them.
        battery: also on hostile values (huge, tiny, subnormal, ties, NaN and Inf in each input, ...), on many rows, on
            inputs that are not contiguous, sliced, broadcast or in Fortran order, and a network fusion by fusion.

    Returns:
        Verdict: true if all passed; `.table()`, `.to_json()`, `.findings`.

    Raises:
        SessionError: the model cannot be loaded. FusionError: the inputs break a fusion's contract.
    """
    session = Session(model, providers, spin=False)  # PyTorch runs between its calls
    fused = session if session.fused else None
    if fused:
        session = Session(model, providers, fuse=False, spin=False)
    args = _drawn(module, session) if inputs is None else inputs
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    with evaluating(module):
        findings, rule = _findings(module, session, fused, args, battery)
        if battery and bare_call(module, args) is None and all(finding.passed for finding in findings):
            findings += _fusion_by_fusion(module, model, args, providers)
    return Verdict(tuple(findings), tuple(session.providers), rule)


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put the module into eval mode, and every part of it back into the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _findings(
    module: torch.nn.Module, session: Session, fused: Session | None, args: tuple[Any, ...], battery: bool
) -> tuple[list[Finding], str]:
    if len(tensors_of(args)) != len(session.inputs):
        detail = f"the model takes {len(session.inputs)} inputs, the module is given {len(tensors_of(args))} tensors"
        return [_broken("the inputs", "count", detail)], DERIVED
    with torch.no_grad():
        result = module(*args)
    once, twice = tensors_of(result), outputs(module, args)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(once, twice, strict=True)):
        detail = "the module gives different results for the same inputs; nothing can be equal to it"
        return [_broken("as given", "eager", detail)], DERIVED
    if wrong := _misnamed(result, [info.name for info in session.outputs]):
        return [_broken("the outputs", "names", wrong)], DERIVED
    judged = Judge(module, args, once, session.providers, forms_in(session.metadata))
    tried = trials.sizes(module, session.inputs, args)
    if battery:
        tried += trials.hostile(module, session.inputs, args) + trials.many_rows(session.inputs, args)
        tried += trials.layouts(session.inputs, args)
    found: list[Finding] = []
    compared = False
    for trial in tried:
        try:
            eager = once if trial.args is args else outputs(module, trial.args)
        except Exception as error:
            if trial.case.rpartition(" ")[2] in ("0", "1"):
                continue  # such as a variance over one row: not in the module's domain
            found.append(_broken(trial.case, "eager", f"the module itself does not run on this: {error}"))
            continue
        try:
            tensors = tensors_of(trial.args)
            given = [t.detach().cpu().numpy() for t in tensors] if trial.numpy else tensors
            model = session.run(*given)
            also = fused.run(*given) if fused else model
        except Exception as error:
            found.append(_broken(trial.case, "run", str(error)))
            continue
        if len(eager) != len(model):
            found.append(_broken(trial.case, "count", f"the model gives {len(model)} outputs, eager {len(eager)}"))
            continue
        tolerances = judged(trial, eager)
        for info, a, b, c, tolerance in zip(session.outputs, eager, model, also, tolerances, strict=True):
            compared = compared or bool(np.isfinite(array(a)).any())
            finding = judge(trial.case, info.name, a, b, tolerance)
            if finding.passed and c is not b:
                by_kernel = judge(f"{trial.case}, fused", info.name, a, c, tolerance)
                finding = finding if by_kernel.passed else by_kernel
            found.append(finding)
    if not compared and any(finding.shape and 0 not in finding.shape for finding in found):
        found.append(_broken("all", "nan", "no entry of any output is finite, so nothing was compared"))
    return found, judged.rule


def _misnamed(result: Any, names: list[str]) -> str:
    """Say what is wrong with the outputs' names, where the module names them itself by returning a mapping of tensors.

    A model may have names of its own; the module's in another order are wrong, whatever their values are.
    """
    if not isinstance(result, Mapping):
        return ""
    keys = [str(key) for key in result]
    plain = [name if name in keys else name.removeprefix("output_") for name in names]
    return f"the model gives {plain}, eager {keys}" if sorted(plain) == sorted(keys) and plain != keys else ""


class Judge:
    """Chooses the tolerance: the same bits, the strategy's bound, or what eager is measured to lose."""

    def __init__(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        eager: list[torch.Tensor],
        providers: list[str],
        forms: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._module, self._forms = module, forms
        call = self._call(args)
        self._bits = (
            call is not None
            and call[0].bitwise
            and providers == ["CPUExecutionProvider"]
            and call[1][0].dtype in _BITWISE
        )
        self._measured = None
        self._args, self._first = args, None if call is None else derived(*call)
        if self._first is None:
            self._measured = Measured(module, args, eager)
        self.rule = BITS if self._bits else self._measured.rule if self._measured else DERIVED

    def __call__(self, trial: Trial, eager: list[torch.Tensor]) -> list[Tolerance]:
        """Return the tolerance of each of eager's outputs on a trial."""
        if self._measured is not None:
            return self._measured(trial.args, eager, trial.hostile)
        call = None if trial.args is self._args else self._call(trial.args)
        tolerance = self._first if call is None else derived(*call)
        assert tolerance is not None
        return [replace(tolerance, rule=BITS, bits=True) if self._bits else tolerance]

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
