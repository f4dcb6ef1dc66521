"""What a model is tried on beside its module: other sizes, hostile values, and inputs laid out in every way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from fusion_onnx.contract import Fusion, FusionLayer
from fusion_onnx.runtime import TensorInfo
from fusion_onnx.verification import battery
from fusion_onnx.verification.arguments import Arguments
from fusion_onnx.verification.subject import Subject
from fusion_onnx.verification.tolerance import derived

ROWS, LARGEST = 257, 2**24
Limits = Mapping[str, tuple[int, int | None]]
_NONE: Limits = MappingProxyType({})


@dataclass(frozen=True)
class Trial:
    """What is run: the module's arguments; `hostile` where they are of another magnitude than the inputs given.

    name: at which sizes, or on which values.
    """

    name: str
    arguments: Arguments
    hostile: bool = False
    numpy: bool = False  # hand the tensors to the session as numpy arrays, strides and all
    optional: bool = False  # a module need not be made for it
    instead: tuple["Trial", ...] = ()  # where it is not made for it: the first of these that it is made for
    finite: bool = True


def sizes(subject: Subject, infos: Sequence[TensorInfo], limits: Limits = _NONE) -> list[Trial]:
    """Return the inputs as given, and resized along the dynamic axes: to 2 s + 1, to 1, and for fusions to 0 too.

    Fusions are defined for an empty batch; not every network is, nor every runtime for what else it consists of. An
    axis that has limits is tried at both: an embedding of positions errs at its last, if anywhere. Where the module
    does not run on values that are drawn apart, it is tried on whole slices of the inputs, then at nearer sizes.
    """
    arguments = subject.arguments
    leaves = arguments.leaves
    axes: dict[str, list[tuple[int, int]]] = {}
    for i, info in zip(arguments.places, infos, strict=True):
        for axis, size in enumerate(info.shape or ()):
            if not isinstance(size, int):
                axes.setdefault(str(size), []).append((i, axis))
    own = {name: leaves[where[0][0]].shape[where[0][1]] for name, where in axes.items()}
    trials = [Trial(_label(own) or "as given", arguments)]
    generator = torch.Generator().manual_seed(0)
    others = [
        {name: _within(2 * size + 1, limits.get(name)) for name, size in own.items()},
        {name: _within(1, limits.get(name)) for name in own},
    ]
    ends = {name: limits[name][1] or size for name, size in own.items() if name in limits}
    entries = sum(t.numel() for t in arguments.tensors)
    if entries * max((ends[n] / max(own[n], 1) for n in ends), default=0) < LARGEST:
        others.append({**own, **ends})
    if isinstance(subject.module, (Fusion, FusionLayer)):
        others.append(dict.fromkeys(own, 0))

    def with_sizes(sizes: Mapping[str, int], whole: bool) -> Trial:
        mixed = list(leaves)
        for name, where in axes.items():
            for i, axis in where:
                mixed[i] = resampled(mixed[i], axis, sizes[name], generator, whole=whole)
        small = min(sizes.values(), default=2) < 2
        return Trial(_label(sizes), arguments.with_leaves(mixed), optional=small)

    def trial(*choices: Mapping[str, int]) -> Trial:
        first, *instead = (with_sizes(sizes, whole) for sizes in choices if sizes != own for whole in (False, True))
        return replace(first, instead=tuple(instead))

    for i, sizes in enumerate(sizes for sizes in others if sizes != own):
        larger = [{name: 2 * size for name, size in own.items()}, {name: size + 1 for name, size in own.items()}]
        nearer = [{name: _within(size, limits.get(name)) for name, size in each.items()} for each in larger]
        trials.append(trial(sizes, *(nearer if i == 0 and min(sizes.values(), default=2) > 1 else ())))
    return trials


def _within(size: int, ends: tuple[int, int | None] | None) -> int:
    least, most = ends or (0, None)
    return max(size if most is None else min(size, most), least)


def masks(subject: Subject) -> list[Trial]:
    """Return the inputs with the first row of each boolean one all false, the second all true, the others drawn.

    A mask that is nowhere empty in the example may be so for a sample whose modality is missing.
    """
    leaves = subject.arguments.leaves
    generator = torch.Generator().manual_seed(5)
    mixed = list(leaves)
    masks = [i for i in subject.arguments.places if leaves[i].dtype == torch.bool and leaves[i].numel()]
    for i in masks:
        mixed[i] = torch.randint(2, leaves[i].shape, generator=generator).bool().to(leaves[i].device)
        rows = mixed[i] if mixed[i].ndim else mixed[i][None]
        rows[0] = False
        rows[1:2] = True
    return [Trial("masks", subject.arguments.with_leaves(mixed), optional=True)] if masks else []


def nonfinite(subject: Subject, infinities: bool = True) -> list[Trial]:
    """Return the inputs with NaN in one row of each floating one, and infinities in two others, where rows are.

    infinities: whether there are any; a form may give NaN where eager gives Inf.

    Each input has rows of its own for them, as far as there are any: what one hands on does not hide another's.
    """
    leaves = subject.arguments.leaves
    generator = torch.Generator().manual_seed(6)
    floating = [i for i in subject.arguments.places if leaves[i].dtype.is_floating_point and leaves[i].numel()]
    mixed = list(leaves)
    values = (torch.nan, torch.inf, -torch.inf) if infinities else (torch.nan,)
    for k, i in enumerate(floating):
        tensor = leaves[i].detach().clone()
        rows = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
        for j, value in enumerate(values[: 1 if len(rows) < len(values) * len(floating) else None]):
            row = (k + j * len(floating)) % len(rows)
            rows[row, int(torch.randint(rows.shape[1], (), generator=generator))] = value
        mixed[i] = rows.reshape(tensor.shape)
    name = "NaN and Inf" if infinities else "NaN"
    arguments = subject.arguments.with_leaves(mixed)
    return [Trial(name, arguments, hostile=True, optional=True, finite=False)] if floating else []


def hostile(subject: Subject, infos: Sequence[TensorInfo]) -> list[Trial]:
    """Return every class of values of the battery in the floating inputs.

    A fusion's own parameters, where they are an input, stay as given but for NaN and Inf.
    """
    leaves, places, call = subject.arguments.leaves, subject.arguments.places, subject.call
    floating = [i for i in places if leaves[i].dtype.is_floating_point and leaves[i].ndim]
    names = [info.name for info, i in zip(infos, places, strict=True) if i in floating]
    parameters = {
        i for i in floating if isinstance(subject.module, Fusion) and call is not None and leaves[i] is call.w
    }
    # a bound says itself where the order decides what overflows
    bounded = call is not None and derived(call.fusion.in_form(), call.xs, call.w) is not None
    largest = None if bounded else _largest(subject, floating)
    trials = []
    for name, values in battery.values([leaves[i] for i in floating], names, largest=largest):
        one_input = " in " in name
        mixed = list(leaves)
        for i, tensor in zip(floating, values, strict=True):
            if i not in parameters or (one_input and not tensor.isfinite().all()):
                mixed[i] = tensor
        finite = all(t.isfinite().all() for t in values)
        trials.append(Trial(name, subject.arguments.with_leaves(mixed), hostile=True, finite=finite))
    return trials


def many_rows(subject: Subject, infos: Sequence[TensorInfo], limits: Limits = _NONE) -> list[Trial]:
    """Return the inputs with `ROWS` along their first axis, where that is dynamic, and may be so long.

    The floating values are log-uniform from 2^-20 to 2^20, of either sign, so that no decade is left out.
    """
    leaves = subject.arguments.leaves
    generator = torch.Generator().manual_seed(3)
    mixed = list(leaves)
    axes = {str(info.shape[0]) for info in infos if info.shape and not isinstance(info.shape[0], int)} - limits.keys()
    for i, info in zip(subject.arguments.places, infos, strict=True):
        tensor = leaves[i]
        for axis, size in enumerate(info.shape or ()):
            if str(size) in axes:
                tensor = resampled(tensor, axis, ROWS, generator)
        if tensor is not leaves[i] and tensor.dtype.is_floating_point:
            exponents = 40 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 20
            signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
            largest = torch.finfo(tensor.dtype).max / 256
            tensor = (signs * torch.exp2(exponents).clamp(max=largest)).to(tensor)
        mixed[i] = tensor
    arguments = subject.arguments.with_leaves(mixed)
    if not axes or sum(t.numel() for t in arguments.tensors) > LARGEST:
        return []
    return [Trial(f"{', '.join(sorted(axes))} {ROWS}, log-uniform", arguments, hostile=True)]


def layouts(subject: Subject, infos: Sequence[TensorInfo]) -> list[Trial]:
    """Return the inputs in every layout of the battery, as torch tensors and as numpy arrays."""
    leaves = subject.arguments.leaves
    copies = {i: dict(battery.layouts(leaves[i].detach())) for i in subject.arguments.places}
    trials = []
    for name in dict.fromkeys(name for each in copies.values() for name in each):
        mixed = [copies.get(i, {}).get(name, leaf) for i, leaf in enumerate(leaves)]
        arguments = subject.arguments.with_leaves(mixed)
        trials.append(Trial(name, arguments))
        if all(info.dtype != "bfloat16" for info in infos):
            trials.append(Trial(f"{name}, as numpy arrays", arguments, numpy=True))
    return trials


def _largest(subject: Subject, floating: list[int]) -> float:
    """Return how large a network's inputs may be without overflow in it, where no bound says what overflows."""
    leaves = subject.arguments.leaves
    largest = min((torch.finfo(leaves[i].dtype).max for i in floating), default=1.0)
    while largest > 16:
        filled = [torch.full_like(leaf, largest) if i in floating else leaf for i, leaf in enumerate(leaves)]
        if all(y.isfinite().all() for y in subject.outputs(subject.arguments.with_leaves(filled))):
            break
        largest /= 16
    return largest / 16


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def resampled(
    tensor: torch.Tensor, axis: int, size: int, generator: torch.Generator, *, whole: bool = False
) -> torch.Tensor:
    """Return the tensor with another size along an axis; values drawn from its own, whole slices for whole numbers.

    whole: slices of floating tensors, too.

    Where its values all differ, so do those that are drawn: beyond their number, values between two of them are taken.
    """
    shape = [size if i == axis else s for i, s in enumerate(tensor.shape)]
    tensor = tensor.detach()
    if tensor.numel() == 0 or size == 0:
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    if whole or not tensor.dtype.is_floating_point:
        rows = torch.randint(tensor.shape[axis], (size,), generator=generator).to(tensor.device)
        return tensor.index_select(axis, rows)
    count, values = int(np.prod(shape)), tensor.flatten()
    if values.unique().numel() < values.numel():
        return values[torch.randint(values.numel(), (count,), generator=generator).to(tensor.device)].reshape(shape)
    order = torch.randperm(values.numel(), generator=generator)[:count].to(tensor.device)
    sample = values[order]
    if len(sample) < count:
        first, second = torch.randint(values.numel(), (2, count - len(sample)), generator=generator).to(tensor.device)
        share = torch.rand(first.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        whole = bool((values == values.round()).all())
        between = (
            torch.where(share < 0.5, values[first], values[second])
            if whole
            else values[first].lerp(values[second], share.to(values))
        )
        sample = torch.cat([sample, between])
    return sample.reshape(shape)


def resized(arguments: Arguments, moves: Sequence[tuple[int, int, int]]) -> Arguments:
    """Return the arguments with (tensor, axis, size) changed; values are drawn from each tensor's own."""
    generator = torch.Generator().manual_seed(0)
    leaves = list(arguments.leaves)
    for i, axis, size in moves:
        place = arguments.places[i]
        leaves[place] = resampled(leaves[place], axis, size, generator)
    return arguments.with_leaves(leaves)
