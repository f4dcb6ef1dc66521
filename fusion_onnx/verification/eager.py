"""`verify`: a model against the module it was exported from, at several sizes, and on hostile values on request."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.runtime import Session
from fusion_onnx.verification import battery as hostile
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
    resampled,
)
from fusion_onnx.verification.verdict import Finding, Verdict

_BITWISE = (torch.float16, torch.float32, torch.float64)


def verify(
    module: torch.nn.Module, model: Any, inputs: Any = None, providers: Any = "cpu", *, battery: bool = False
) -> Verdict:
    """Compare an ONNX model with the eager module, output by output, at the inputs' own and at other sizes.

    Checked in this order: number of outputs, dtype, shape, NaN positions, Inf positions and signs, then the error. A
    fusion alone is held to its strategy's bound, or to the same bits; a network to what eager execution itself is
    measured to lose against float64.

    Args:
        module: the module the model was exported from.
        model: a path, bytes, an onnx.ModelProto, or the result of `export`.
        inputs: a tuple of the module's positional arguments; drawn at random from the model's input shapes if None.
        providers: as `Session` takes them.
        battery: also on hostile values (huge, tiny, subnormal, ties, NaN and Inf in each input, ...) and on inputs
            that are not contiguous, sliced, broadcast or in Fortran order.

    Returns:
        Verdict: true if all passed; `.table()`, `.to_json()`, `.findings`.

    Raises:
        SessionError: the model cannot be loaded. FusionError: the inputs break a fusion's contract.
    """
    session = Session(model, providers)
    args = _drawn(module, session) if inputs is None else inputs
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    with evaluating(module):
        findings, rule = _findings(module, session, args, battery)
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


@dataclass(frozen=True)
class _Trial:
    """What is run: the module's arguments; `hostile` where they are of another size than the inputs given."""

    case: str
    args: tuple[Any, ...]
    hostile: bool = False
    numpy: bool = False  # hand the tensors to the session as numpy arrays, strides and all


def _findings(
    module: torch.nn.Module, session: Session, args: tuple[Any, ...], battery: bool
) -> tuple[list[Finding], str]:
    if len(_tensors(args)) != len(session.inputs):
        detail = f"the model takes {len(session.inputs)} inputs, the module is given {len(_tensors(args))} tensors"
        return [_broken("the inputs", "count", detail)], DERIVED
    once, twice = outputs(module, args), outputs(module, args)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(once, twice, strict=True)):
        detail = "the module gives different results for the same inputs; nothing can be equal to it"
        return [_broken("as given", "eager", detail)], DERIVED
    judged = _Judge(module, args, once, session)
    trials = _sizes(module, session, args)
    if battery:
        trials += _hostile(module, session, args)
    found: list[Finding] = []
    compared = False
    for trial in trials:
        try:
            eager = outputs(module, trial.args)
        except Exception as error:
            if trial.args is args:
                raise
            if trial.case.rpartition(" ")[2] in ("0", "1"):
                continue  # such as a variance over one row: not in the module's domain
            found.append(_broken(trial.case, "eager", f"the module itself does not run on this: {error}"))
            continue
        try:
            tensors = _tensors(trial.args)
            model = session.run(*[t.detach().cpu().numpy() for t in tensors] if trial.numpy else tensors)
        except Exception as error:
            found.append(_broken(trial.case, "run", str(error)))
            continue
        if len(eager) != len(model):
            found.append(_broken(trial.case, "count", f"the model gives {len(model)} outputs, eager {len(eager)}"))
            continue
        for info, a, b, tolerance in zip(session.outputs, eager, model, judged(trial, eager), strict=True):
            compared = compared or bool(np.isfinite(array(a)).any())
            found.append(judge(trial.case, info.name, a, b, tolerance))
    if not compared and any(finding.shape and 0 not in finding.shape for finding in found):
        found.append(_broken("all", "nan", "no entry of any output is finite, so nothing was compared"))
    return found, judged.rule


class _Judge:
    """Chooses the tolerance: the same bits, the strategy's bound, or what eager is measured to lose."""

    def __init__(
        self, module: torch.nn.Module, args: tuple[Any, ...], eager: list[torch.Tensor], session: Session
    ) -> None:
        call = bare_call(module, args)
        self._bits = (
            call is not None
            and call[0].bitwise
            and session.providers == ["CPUExecutionProvider"]
            and call[1][0].dtype in _BITWISE
        )
        self._module = module
        self._measured = None
        if call is None or derived(*call) is None:
            self._measured = Measured(module, args, eager)
        self.rule = BITS if self._bits else self._measured.rule if self._measured else DERIVED

    def __call__(self, trial: _Trial, eager: list[torch.Tensor]) -> list[Tolerance]:
        if self._measured is not None:
            return self._measured(trial.args, eager, trial.hostile)
        call = bare_call(self._module, trial.args)
        assert call is not None
        tolerance = derived(*call)
        assert tolerance is not None
        return [replace(tolerance, rule=BITS, bits=True) if self._bits else tolerance]


def _tensors(args: tuple[Any, ...]) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]


def _broken(case: str, failed: str, detail: str) -> Finding:
    return Finding(case, "", (), "", failed, detail, float("inf"), 0.0, float("inf"), ())


def _sizes(module: torch.nn.Module, session: Session, args: tuple[Any, ...]) -> list[_Trial]:
    """Return the inputs as given, and resized along the dynamic axes: to 2 s + 1, to 1, and for fusions to 0 too.

    Fusions are defined for an empty batch; not every network is, nor every runtime for what else it consists of.
    """
    leaves, spec = pytree.tree_flatten(args)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    axes: dict[str, list[tuple[int, int]]] = {}
    for i, info in zip(tensors, session.inputs, strict=True):
        for axis, size in enumerate(info.shape or ()):
            if not isinstance(size, int):
                axes.setdefault(str(size), []).append((i, axis))
    given = {name: leaves[where[0][0]].shape[where[0][1]] for name, where in axes.items()}
    trials = [_Trial(_label(given) or "as given", args)]
    generator = torch.Generator().manual_seed(0)
    others = [{name: 2 * size + 1 for name, size in given.items()}, dict.fromkeys(given, 1)]
    if isinstance(module, (Fusion, FusionLayer)):
        others.append(dict.fromkeys(given, 0))
    for sizes in others:
        if sizes == given:
            continue
        resized = list(leaves)
        for name, where in axes.items():
            for i, axis in where:
                resized[i] = resampled(resized[i], axis, sizes[name], generator)
        trials.append(_Trial(_label(sizes), pytree.tree_unflatten(resized, spec)))
    return trials


def _hostile(module: torch.nn.Module, session: Session, args: tuple[Any, ...]) -> list[_Trial]:
    """Return the battery: every class of values in the floating inputs, and every layout of all inputs.

    A fusion's own parameters, where they are an input, stay as given but for NaN and Inf.
    """
    leaves, spec = pytree.tree_flatten(args)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    floating = [i for i in tensors if leaves[i].dtype.is_floating_point and leaves[i].ndim]
    names = [info.name for info, i in zip(session.inputs, tensors, strict=True) if i in floating]
    call = bare_call(module, args)
    kept = {i for i in floating if isinstance(module, Fusion) and call is not None and leaves[i] is call[2]}
    trials = []

    def add(case: str, replaced: Mapping[int, torch.Tensor], numpy: bool = False, unusual: bool = True) -> None:
        mixed = [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]
        trials.append(_Trial(case, pytree.tree_unflatten(mixed, spec), unusual, numpy))

    largest = None if call is not None else _largest(module, leaves, spec, floating)
    for name, drawn in hostile.values([leaves[i] for i in floating], names, largest=largest):
        replaced = dict(zip(floating, drawn, strict=True))
        spoilt = " in " in name
        add(name, {i: t for i, t in replaced.items() if i not in kept or (spoilt and not t.isfinite().all())})
    shapes = [dict(hostile.layouts(leaves[i].detach())) for i in tensors]
    for name in dict.fromkeys(name for shaped in shapes for name in shaped):
        laid = {i: shaped[name] for i, shaped in zip(tensors, shapes, strict=True) if name in shaped}
        add(name, laid, unusual=False)
        if all(t.dtype != torch.bfloat16 for t in laid.values()):
            add(f"{name}, as numpy arrays", laid, numpy=True, unusual=False)
    return trials


def _largest(module: torch.nn.Module, leaves: list[Any], spec: Any, floating: list[int]) -> float:
    """Return how large a network's inputs may be without overflow in it, where no bound says what overflows."""
    largest = min((torch.finfo(leaves[i].dtype).max for i in floating), default=1.0)
    while largest > 16:
        filled = [torch.full_like(leaf, largest) if i in floating else leaf for i, leaf in enumerate(leaves)]
        if all(y.isfinite().all() for y in outputs(module, pytree.tree_unflatten(filled, spec))):
            break
        largest /= 16
    return largest / 16


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


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
