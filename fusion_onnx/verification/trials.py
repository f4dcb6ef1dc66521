"""What a model is tried on beside its module: other sizes, hostile values, and inputs laid out in every way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.runtime import TensorInfo
from fusion_onnx.verification import battery
from fusion_onnx.verification.repeatable import Repeatable
from fusion_onnx.verification.tolerance import bare_call, derived, outputs, resampled

ROWS, LARGEST = 257, 2**24


@dataclass(frozen=True)
class Trial:
    """What is run: the module's arguments; `hostile` where they are of another magnitude than the inputs given."""

    case: str
    args: tuple[Any, ...]
    hostile: bool = False
    numpy: bool = False  # hand the tensors to the session as numpy arrays, strides and all
    optional: bool = False  # a module need not be made for it
    finite: bool = True


def tensors_of(args: tuple[Any, ...]) -> list[torch.Tensor]:
    """Return the tensors among the arguments, in the order of the graph's inputs."""
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]


def sizes(module: torch.nn.Module, infos: Sequence[TensorInfo], args: tuple[Any, ...]) -> list[Trial]:
    """Return the inputs as given, and resized along the dynamic axes: to 2 s + 1, to 1, and for fusions to 0 too.

    Fusions are defined for an empty batch; not every network is, nor every runtime for what else it consists of.
    """
    leaves, spec = pytree.tree_flatten(args)
    tensors = _places(leaves)
    axes: dict[str, list[tuple[int, int]]] = {}
    for i, info in zip(tensors, infos, strict=True):
        for axis, size in enumerate(info.shape or ()):
            if not isinstance(size, int):
                axes.setdefault(str(size), []).append((i, axis))
    given = {name: leaves[where[0][0]].shape[where[0][1]] for name, where in axes.items()}
    trials = [Trial(_label(given) or "as given", args)]
    generator = torch.Generator().manual_seed(0)
    others = [{name: 2 * size + 1 for name, size in given.items()}, dict.fromkeys(given, 1)]
    if isinstance(module, (Fusion, FusionLayer)):
        others.append(dict.fromkeys(given, 0))
    for wanted in others:
        if wanted == given:
            continue
        resized = list(leaves)
        for name, where in axes.items():
            for i, axis in where:
                resized[i] = resampled(resized[i], axis, wanted[name], generator)
        small = min(wanted.values(), default=2) < 2
        trials.append(Trial(_label(wanted), pytree.tree_unflatten(resized, spec), optional=small))
    return trials


def masks(args: tuple[Any, ...]) -> list[Trial]:
    """Return the inputs with the first row of each boolean one all false, the second all true, the others drawn.

    A mask that is nowhere empty in the example may be so for a sample whose modality is missing.
    """
    leaves, spec = pytree.tree_flatten(args)
    generator = torch.Generator().manual_seed(5)
    drawn = list(leaves)
    for i in _places(leaves):
        if leaves[i].dtype == torch.bool and leaves[i].numel():
            drawn[i] = torch.randint(2, leaves[i].shape, generator=generator).bool().to(leaves[i].device)
            rows = drawn[i] if drawn[i].ndim else drawn[i][None]
            rows[0] = False
            rows[1:2] = True
    masks = [leaf for leaf, new in zip(leaves, drawn, strict=True) if leaf is not new]
    return [Trial("masks", pytree.tree_unflatten(drawn, spec), optional=True)] if masks else []


def nonfinite(infos: Sequence[TensorInfo], args: tuple[Any, ...]) -> list[Trial]:
    """Return the inputs with NaN in one row of each floating one, and infinities in two others, where rows are.

    Each input has rows of its own for them, as far as there are any: what one hands on does not hide another's.
    """
    leaves, spec = pytree.tree_flatten(args)
    generator = torch.Generator().manual_seed(6)
    floating = [i for i in _places(leaves) if leaves[i].dtype.is_floating_point and leaves[i].numel()]
    spoilt = list(leaves)
    values = (torch.nan, torch.inf, -torch.inf)
    for k, i in enumerate(floating):
        tensor = spoilt[i] = leaves[i].detach().clone()
        rows = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
        for j, value in enumerate(values[: 1 if len(rows) < len(values) * len(floating) else None]):
            row = (k + j * len(floating)) % len(rows)
            rows[row, int(torch.randint(rows.shape[1], (), generator=generator))] = value
        spoilt[i] = rows.reshape(tensor.shape)
    return (
        [Trial("NaN and Inf", pytree.tree_unflatten(spoilt, spec), True, optional=True, finite=False)]
        if floating
        else []
    )


def hostile(run: Repeatable, infos: Sequence[TensorInfo], args: tuple[Any, ...]) -> list[Trial]:
    """Return every class of values of the battery in the floating inputs.

    A fusion's own parameters, where they are an input, stay as given but for NaN and Inf.
    """
    module = run.module
    leaves, spec = pytree.tree_flatten(args)
    tensors = _places(leaves)
    floating = [i for i in tensors if leaves[i].dtype.is_floating_point and leaves[i].ndim]
    names = [info.name for info, i in zip(infos, tensors, strict=True) if i in floating]
    call = bare_call(module, args)
    kept = {i for i in floating if isinstance(module, Fusion) and call is not None and leaves[i] is call[2]}
    bounded = call is not None and derived(*call) is not None  # says itself where the order decides what overflows
    largest = None if bounded else _largest(run, leaves, spec, floating)
    trials = []
    for name, drawn in battery.values([leaves[i] for i in floating], names, largest=largest):
        spoilt = " in " in name
        mixed = list(leaves)
        for i, tensor in zip(floating, drawn, strict=True):
            if i not in kept or (spoilt and not tensor.isfinite().all()):
                mixed[i] = tensor
        finite = all(t.isfinite().all() for t in drawn)
        trials.append(Trial(name, pytree.tree_unflatten(mixed, spec), hostile=True, finite=finite))
    return trials


def many_rows(infos: Sequence[TensorInfo], args: tuple[Any, ...]) -> list[Trial]:
    """Return the inputs with `ROWS` along their first axis, where that is dynamic in all that have one.

    The floating values are log-uniform from 2^-20 to 2^20, of either sign, so that no decade is left out.
    """
    leaves, spec = pytree.tree_flatten(args)
    generator = torch.Generator().manual_seed(3)
    grown = list(leaves)
    axes = {str(info.shape[0]) for info in infos if info.shape and not isinstance(info.shape[0], int)}
    for i, info in zip(_places(leaves), infos, strict=True):
        tensor = leaves[i]
        for axis, size in enumerate(info.shape or ()):
            if str(size) in axes:
                tensor = resampled(tensor, axis, ROWS, generator)
        if tensor is not leaves[i] and tensor.dtype.is_floating_point:
            exponents = 40 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 20
            signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
            largest = torch.finfo(tensor.dtype).max / 256
            tensor = (signs * torch.exp2(exponents).clamp(max=largest)).to(tensor)
        grown[i] = tensor
    if not axes or sum(t.numel() for t in grown if isinstance(t, torch.Tensor)) > LARGEST:
        return []
    return [Trial(f"{', '.join(sorted(axes))} {ROWS}, log-uniform", pytree.tree_unflatten(grown, spec), hostile=True)]


def layouts(infos: Sequence[TensorInfo], args: tuple[Any, ...]) -> list[Trial]:
    """Return the inputs in every layout of the battery, as torch tensors and as numpy arrays."""
    leaves, spec = pytree.tree_flatten(args)
    tensors = _places(leaves)
    shaped = {i: dict(battery.layouts(leaves[i].detach())) for i in tensors}
    trials = []
    for name in dict.fromkeys(name for each in shaped.values() for name in each):
        laid = pytree.tree_unflatten([shaped.get(i, {}).get(name, leaf) for i, leaf in enumerate(leaves)], spec)
        trials.append(Trial(name, laid))
        if all(info.dtype != "bfloat16" for info in infos):
            trials.append(Trial(f"{name}, as numpy arrays", laid, numpy=True))
    return trials


def _largest(run: Repeatable, leaves: list[Any], spec: Any, floating: list[int]) -> float:
    """Return how large a network's inputs may be without overflow in it, where no bound says what overflows."""
    largest = min((torch.finfo(leaves[i].dtype).max for i in floating), default=1.0)
    while largest > 16:
        filled = [torch.full_like(leaf, largest) if i in floating else leaf for i, leaf in enumerate(leaves)]
        if all(y.isfinite().all() for y in outputs(run, pytree.tree_unflatten(filled, spec))):
            break
        largest /= 16
    return largest / 16


def _places(leaves: Sequence[Any]) -> list[int]:
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
