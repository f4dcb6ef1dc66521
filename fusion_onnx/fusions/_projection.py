"""What the projecting concatenations share: y = [x_1 ... x_k] Wᵀ with W (n, D), n given or n_1 where all are equal."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract import Fusion
from fusion_onnx.errors import FusionError


class ProjectionFusion(Fusion):
    """n as given, by default n_1 where all widths are equal; `dims` cannot be left out."""

    needs_dims = True
    rule_n = "n"

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        *,
        n: int | None = None,
        require_parameters: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(dims, require_parameters=require_parameters, **base)
        if not require_parameters:
            raise FusionError(f"{self.strategy()} is a trained projection: require_parameters stays True.")
        assert self.dims is not None
        if n is None and any(d != self.dims[0] for d in self.dims):
            raise FusionError(f"{self.strategy()}: give n, the output width; dims={list(self.dims)} are not all equal.")
        self.n = self.dims[0] if n is None else positive("n", n)
        self.total = sum(self.dims)

    def calculate_n(self, dims: Sequence[int] | None = None) -> int:
        """Return n."""
        return self.n


def positive(name: str, value: Any) -> int:
    """Return the value; raise FusionError where it is not a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FusionError(f"{name} is a whole number from 1 up; got {value!r}.")
    return value


def divides(name: str, value: int, of: str, whole: int) -> int:
    """Return whole / value; raise FusionError where that leaves a rest."""
    if whole % value:
        fits = ", ".join(str(d) for d in range(1, min(whole, 1000) + 1) if whole % d == 0)
        raise FusionError(f"{name} divides {of}; {name}={value} does not divide {of}={whole}. Fitting: {fits}, ....")
    return whole // value


def joined(xs: Sequence[Tensor]) -> Tensor:
    """Return [x_1 ... x_k]."""
    return xs[0] if len(xs) == 1 else torch.cat(list(xs), dim=-1)


def joined_decomposition(op: Any, xs: Sequence[Any]) -> Any:
    """Write the same in ONNX."""
    return xs[0] if len(xs) == 1 else op.Concat(*xs, axis=-1)


def matrices(w: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Cut the flat parameters (l,) into tensors of these shapes, row-major, one after the other."""
    return [part.reshape(s) for part, s in zip(w.split([math.prod(s) for s in shapes]), shapes, strict=True)]


def matrices_decomposition(op: Any, w: Any, *shapes: tuple[int, ...]) -> list[Any]:
    """Write the same in ONNX."""
    sizes = [math.prod(s) for s in shapes]
    parts = [w] if len(sizes) == 1 else op.Split(w, op.integers(sizes), axis=0, _outputs=len(sizes))
    return [part if len(s) == 1 else op.Reshape(part, op.integers(s)) for part, s in zip(parts, shapes, strict=True)]


def transposed(op: Any, matrix: Any) -> Any:
    """Write the transpose of a matrix in ONNX."""
    return op.Transpose(matrix, perm=[1, 0])
