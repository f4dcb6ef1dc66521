"""Checks of inputs and parameters: of structure only, never of a tensor's values, which would break export.

`owner` is the fusion's name, for messages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fusion_onnx.errors import FusionError


def checked_inputs(owner: str, dims: Sequence[int] | None, equal_dims: bool, x: Any) -> list[Tensor]:
    """Return the inputs as a list; raise FusionError where they break the contract."""
    if not isinstance(x, (list, tuple)):
        raise FusionError(f"{owner}: the inputs are a list or tuple of tensors; got {type(x).__name__}.")
    if not x:
        raise FusionError(f"{owner}: at least one input is needed; got an empty {type(x).__name__}.")
    for i, t in enumerate(x, 1):
        if not isinstance(t, Tensor):
            raise FusionError(f"{owner}: input {i} is a {type(t).__name__}, not a tensor.")
        if not t.dtype.is_floating_point:
            raise FusionError(f"{owner}: inputs are floating; input {i} is {t.dtype}. Convert it: x.float().")
        if t.ndim == 0:
            raise FusionError(f"{owner}: inputs have at least one axis; input {i} is a scalar.")
    first = x[0]
    for i, t in enumerate(x[1:], 2):
        if t.dtype != first.dtype:
            raise FusionError(
                f"{owner}: inputs share one dtype; input 1 is {first.dtype}, input {i} is {t.dtype}. "
                f"Convert it: x.to({first.dtype})."
            )
        if t.device != first.device:
            raise FusionError(
                f"{owner}: inputs share one device; input 1 is on {first.device}, input {i} on {t.device}. "
                f"Move it: x.to({str(first.device)!r})."
            )
    _check_widths(owner, dims, x)
    _check_shapes(owner, equal_dims, x)
    return list(x)


def _check_widths(owner: str, dims: Sequence[int] | None, xs: Sequence[Tensor]) -> None:
    if dims is None:
        return
    if len(xs) != len(dims):
        raise FusionError(f"{owner}: dims={list(dims)} means {len(dims)} inputs; got {len(xs)}.")
    for i, (t, d) in enumerate(zip(xs, dims, strict=True), 1):
        if t.shape[-1] != d:
            raise FusionError(
                f"{owner}: input {i} has last dimension {t.shape[-1]}, shape {list(t.shape)}, "
                f"where dims={list(dims)} asks for {d}."
            )


def _check_shapes(owner: str, equal_dims: bool, xs: Sequence[Tensor]) -> None:
    first = xs[0]
    own = 0 if equal_dims else 1  # how many trailing axes may differ
    for i, t in enumerate(xs[1:], 2):
        if t.ndim != first.ndim or any(a != b for a, b in zip(t.shape[: t.ndim - own], first.shape, strict=False)):
            rule = "one shape" if equal_dims else "all axes but the last"
            raise FusionError(
                f"{owner}: inputs share {rule}; input 1 is {list(first.shape)}, input {i} is {list(t.shape)}. "
                "Inputs are never broadcast: expand them first."
            )


def checked_parameters(owner: str, length: int, w: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the parameters as (l,), None where l = `length` is 0; raise FusionError where they are not l, or unlike x.

    like: an input, whose dtype and device they have.
    """
    shape = None if w is None else tuple(w.shape)
    if length == 0:
        if w is not None and w.numel() > 0:
            raise FusionError(f"{owner} has no trainable parameters (l = 0); got w of shape {shape}.")
        return None
    if w is None:
        raise FusionError(
            f"{owner} needs its {length} parameters: call it with w of shape ({length},) or (1, {length}), "
            "or let fusion_onnx.FusionLayer(fusion) own them."
        )
    if shape not in ((length,), (1, length)):
        raise FusionError(f"{owner}: w has shape ({length},) or (1, {length}); got {shape}.")
    if w.dtype != like.dtype or w.device != like.device:
        raise FusionError(
            f"{owner}: w is {w.dtype} on {w.device}, the inputs {like.dtype} on {like.device}; convert it: w.to(x)."
        )
    return w if w.ndim == 1 else w.reshape(-1)


def checked_buffers(owner: str, buffers: Mapping[str, Tensor], like: Tensor) -> list[Tensor]:
    """Return the buffers in an input's dtype; raise FusionError where one is on another device."""
    for name, buffer in buffers.items():
        if buffer.device != like.device:
            raise FusionError(
                f"{owner}: {name} is on {buffer.device}, the inputs on {like.device}; "
                f"move the fusion: fusion.to({str(like.device)!r})."
            )
    return [b.to(like.dtype) for b in buffers.values()]


def checked_stack(owner: str, processed: Any, stacked: Tensor) -> list[Tensor]:
    """Return what `pre_process` made of stacked inputs (k, ..., n), one by one; raise FusionError where k is lost."""
    checked_output(owner, "pre_process", processed)
    if processed.ndim < 2 or processed.shape[0] != len(stacked):
        raise FusionError(
            f"{owner}: preprocess functions see inputs of one shape stacked along a new first axis, and "
            f"keep it; {list(stacked.shape)} became {list(processed.shape)}. Let them work on the last axis."
        )
    return list(processed.unbind())


def checked_output(owner: str, hook: str, processed: Any) -> Tensor:
    """Return what a hook made; raise FusionError where it is no tensor."""
    if not isinstance(processed, Tensor):
        raise FusionError(f"{owner}: {hook} returns a tensor; it returned {type(processed).__name__}.")
    return processed
