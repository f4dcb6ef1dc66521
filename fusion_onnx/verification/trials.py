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
from fusion_onnx.verification.tolerance import bare_call, derived, outputs, resampled

ROWS, LARGEST = 257, 2**24


@dataclass(frozen=True)
class Trial:
    """What is run: the module's arguments; `hostile` where they are of another magnitude than the inputs given."""

    case: str
    args: tuple[Any, ...]
    hostile: bool = False
    numpy: bool = False  # hand the tensors to the session as numpy arrays, strides and all


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
        trials.append(Trial(_label(wanted), pytree.tree_unflatten(resized, spec)))
    return trials


def hostile(module: torch.nn.Module, infos: Sequence[TensorInfo], args: tuple[Any, ...]) -> list[Trial]:
    """Return every class of values of the battery in the floating inputs.

    A fusion's own parameters, where they are an input, stay as given but for NaN and Inf.
    """
    leaves, spec = pytree.tree_flatten(args)
    tensors = _places(leaves)
    floating = [i for i in tensors if leaves[i].dtype.is_floating_point and leaves[i].ndim]
    names = [info.name for info, i in zip(infos, tensors, strict=True) if i in floating]
    call = bare_call(module, args)
    kept = {i for i in floating if isinstance(module, Fusion) and call is not None and leaves[i] is call[2]}
    bounded = call is not None and derived(*call) is not None  # says itself where the order decides what overflows
    largest = None if bounded else _largest(module, leaves, spec, floating)
    trials = []
    for name, drawn in battery.values([leaves[i] for i in floating], names, largest=largest):
        spoilt = " in " in name
        mixed = list(leaves)
        for i, tensor in zip(floating, drawn, strict=True):
            if i not in kept or (spoilt and not tensor.isfinite().all()):
                mixed[i] = tensor
        trials.append(Trial(name, pytree.tree_unflatten(mixed, spec), hostile=True))
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


def _largest(module: torch.nn.Module, leaves: list[Any], spec: Any, floating: list[int]) -> float:
    """Return how large a network's inputs may be without overflow in it, where no bound says what overflows."""
    largest = min((torch.finfo(leaves[i].dtype).max for i in floating), default=1.0)
    while largest > 16:
        filled = [torch.full_like(leaf, largest) if i in floating else leaf for i, leaf in enumerate(leaves)]
        if all(y.isfinite().all() for y in outputs(module, pytree.tree_unflatten(filled, spec))):
            break
        largest /= 16
    return largest / 16


def _places(leaves: Sequence[Any]) -> list[int]:
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
