"""`verify`: a model against the module it was exported from, at several batch sizes."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.runtime import Session
from fusion_onnx.verification.compare import Array, compare
from fusion_onnx.verification.verdict import Finding, Verdict

FACTOR = 8
PROBES = 8
RULE = (
    f"{FACTOR} × the largest |eager − float64| over {PROBES} + 1 draws of the input, + 4 u |y| "
    "(u: half the machine epsilon of the output's dtype)"
)
UNMEASURED = (
    "256 u max |y| (u: half the machine epsilon of the output's dtype): the module cannot be run in float64, "
    "so its own error cannot be measured"
)
_DOUBLE_PER_SINGLE = 2.0**-29  # the machine epsilon of float64 over that of float32


def verify(module: torch.nn.Module, model: Any, inputs: Any = None, providers: Any = "cpu") -> Verdict:
    """Compare an ONNX model with the eager module, output by output, at the inputs' own and at other batch sizes.

    Checked in this order: number of outputs, dtype, shape, NaN positions, Inf positions and signs, then the error
    against a tolerance that is measured: how far eager execution itself is from float64 on inputs like these.

    Args:
        module: the module the model was exported from.
        model: a path, bytes, an onnx.ModelProto, or the result of `export`.
        inputs: a tuple of the module's positional arguments; drawn at random from the model's input shapes if None.
        providers: as `Session` takes them.

    Returns:
        Verdict: true if all passed; `.table()`, `.to_json()`, `.findings`.

    Raises:
        SessionError: the model cannot be loaded. FusionError: the inputs break a fusion's contract.
    """
    session = Session(model, providers)
    args = _drawn(module, session) if inputs is None else inputs
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    with evaluating(module):
        findings, rule = _findings(module, session, args)
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


def _findings(module: torch.nn.Module, session: Session, args: tuple[Any, ...]) -> tuple[list[Finding], str]:
    tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(session.inputs):
        detail = f"the model takes {len(session.inputs)} inputs, the module is given {len(tensors)} tensors"
        return [_broken("the inputs", "count", detail)], RULE
    once, twice = _run(module, args), _run(module, args)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(once, twice, strict=True)):
        detail = "the module gives different results for the same inputs; nothing can be equal to it"
        return [_broken("as given", "eager", detail)], RULE
    noise, rule = _noise(module, args, once)
    found: list[Finding] = []
    compared = False
    for case, tried in _cases(module, session, args):
        try:
            eager = _run(module, tried)
        except Exception as error:
            if tried is args:
                raise
            if case.rpartition(" ")[2] in ("0", "1"):
                continue  # such as a variance over one row: not in the module's domain
            found.append(_broken(case, "eager", f"the module itself does not run at this size: {error}"))
            continue
        try:
            model = session.run(*[leaf for leaf in pytree.tree_leaves(tried) if isinstance(leaf, torch.Tensor)])
        except Exception as error:
            found.append(_broken(case, "run", str(error)))
            continue
        if len(eager) != len(model):
            found.append(_broken(case, "count", f"the model gives {len(model)} outputs, eager {len(eager)}"))
            continue
        for info, a, b, measured in zip(session.outputs, eager, model, noise, strict=True):
            y = _array(a)
            compared = compared or bool(np.isfinite(y).any())
            allowed = FACTOR * measured + 4 * _unit(a) * np.abs(np.where(np.isfinite(y), y, 0))
            found.append(compare(case, info.name, (_name(a), _name(b)), y, _array(b), allowed))
    if not compared and any(finding.shape and 0 not in finding.shape for finding in found):
        found.append(_broken("all", "nan", "no entry of any output is finite, so nothing was compared"))
    return found, rule


def _broken(case: str, failed: str, detail: str) -> Finding:
    return Finding(case, "", (), "", failed, detail, float("inf"), 0.0, float("inf"), ())


def _cases(module: torch.nn.Module, session: Session, args: tuple[Any, ...]) -> list[tuple[str, tuple[Any, ...]]]:
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
    cases = [(_label(given) or "as given", args)]
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
                resized[i] = _resampled(resized[i], axis, sizes[name], generator)
        cases.append((_label(sizes), pytree.tree_unflatten(resized, spec)))
    return cases


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _resampled(tensor: torch.Tensor, axis: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return the tensor with another size along an axis; values drawn from its own, whole slices for whole numbers."""
    shape = [size if i == axis else s for i, s in enumerate(tensor.shape)]
    if tensor.numel() == 0 or size == 0:
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    if not tensor.dtype.is_floating_point:
        rows = torch.randint(tensor.shape[axis], (size,), generator=generator).to(tensor.device)
        return tensor.detach().index_select(axis, rows)
    chosen = torch.randint(tensor.numel(), (int(np.prod(shape)),), generator=generator).to(tensor.device)
    return tensor.detach().flatten()[chosen].reshape(shape)


def _noise(module: torch.nn.Module, args: tuple[Any, ...], once: list[torch.Tensor]) -> tuple[list[float], str]:
    """Return what eager execution loses, by output, and the rule that makes the tolerance of it."""
    try:
        return _measured(module, args), RULE
    except Exception:  # whatever a module that was not made for float64 may raise
        finite = [_array(y)[np.isfinite(_array(y))] for y in once]
        largest = [float(np.abs(y).max()) if y.size else 0.0 for y in finite]
        return [256 / FACTOR * _unit(y) * m for y, m in zip(once, largest, strict=True)], UNMEASURED


def _measured(module: torch.nn.Module, args: tuple[Any, ...]) -> list[float]:
    """Return, for each output, the largest |eager - float64| over the inputs and resampled ones.

    A float64 module has nothing better to be compared with: what float32 loses against it, times the ratio of their
    machine epsilons, says how much it loses itself.
    """
    exact, single = copy.deepcopy(module).double(), copy.deepcopy(module).float()
    generator = torch.Generator().manual_seed(1)
    largest: list[float] = []
    for probe in range(PROBES + 1):
        tried = args
        if probe:
            leaves, spec = pytree.tree_flatten(args)
            tried = pytree.tree_unflatten(
                [
                    _resampled(t, 0, t.shape[0], generator) if isinstance(t, torch.Tensor) and t.ndim else t
                    for t in leaves
                ],
                spec,
            )
        eager = _run(module, tried)
        truth = _run(exact, _cast(tried, torch.float64))
        coarse = _run(single, _cast(tried, torch.float32))
        largest = largest or [0.0] * len(eager)
        for i, (a, b, c) in enumerate(zip(eager, truth, coarse, strict=True)):
            lost, unit = (c, _DOUBLE_PER_SINGLE) if a.dtype == torch.float64 else (a, 1.0)
            with np.errstate(invalid="ignore"):  # inf - inf
                difference = np.abs(_array(lost) - _array(b)) * unit
            finite = difference[np.isfinite(difference)]
            largest[i] = max(largest[i], float(finite.max()) if finite.size else 0.0)
    return largest


def _cast(args: tuple[Any, ...], dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(
        torch.Tensor, lambda t: t.detach().to(dtype) if t.dtype.is_floating_point else t.detach(), args
    )


def _run(module: torch.nn.Module, args: Sequence[Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(module(*args)) if isinstance(leaf, torch.Tensor)]


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


def _array(tensor: Any) -> Array:
    tensor = torch.as_tensor(tensor).detach().cpu()
    array: Array = (tensor.double() if tensor.dtype != torch.bool else tensor.int().double()).numpy()
    return array


def _name(tensor: Any) -> str:
    return str(torch.as_tensor(tensor).dtype).removeprefix("torch.")


def _unit(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps / 2 if tensor.dtype.is_floating_point else 0.0
