"""What the projecting concatenations share: y = [x_1 ... x_k] Wᵀ with W (n, D), n given or n_1 where all are equal."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, Fusion, FusionError, form
from fusion_onnx.contract.options import whole


class ProjectionFusion(Fusion):
    """n as given, by default n_1 where all widths are equal; `dims` cannot be left out.

    A strategy gives W from its definition (`matrix`), which is its reference. One whose W has structure also writes it
    in ONNX (`matrix_decomposition`, `matrix_roundings`), and with that has the form "dense": y = [x_1 ... x_k] Wᵀ with
    W formed once, when the model is loaded, where its factors are constant.
    """

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

    def matrix(self, w: Array, *buffers: Array) -> Array:
        """Return W (n, D) from its definition, in NumPy, in the dtype of w (l,)."""
        raise NotImplementedError

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        assert w is not None
        y: Array = np.concatenate(xs, axis=-1) @ self.matrix(w, *self.buffer_arrays()).T
        return y

    def matrix_decomposition(self, op: Any, w: Any, *buffers: Any) -> Any:
        """Write W (n, D) in ONNX; NotImplemented where W has no structure."""
        return NotImplemented

    def matrix_roundings(self) -> int:
        """Return how many roundings an entry of W takes to be made."""
        return 0

    @form("dense", propagates_inf=False, bound="dense_bound")
    def decompose_dense(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the product with the whole matrix, where its factors are not the cheaper way."""
        matrix = self.matrix_decomposition(op, w, *buffers)
        if matrix is NotImplemented:
            return NotImplemented
        return op.MatMul(concatenate_decomposition(op, xs), transpose(op, matrix))

    def dense_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        """Bound what the form "dense" loses: one inner product of length D, of entries that are rounded themselves."""
        assert w is not None
        matrix = torch.from_numpy(self.matrix(w.numpy(), *(b.numpy() for b in buffers)))
        return arithmetic.chain(self.fuse, xs, [w, *buffers], [(self.total, matrix)], self.matrix_roundings())


def cut(w: Array, *shapes: tuple[int, int]) -> list[Array]:
    """Read w (l,) as matrices of these shapes, one after the other, each row by row."""
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(w, ends[:-1]), shapes, strict=True)]


def positive(name: str, value: Any) -> int:
    """Return the value; raise FusionError where it is not a whole number from 1 up."""
    number = whole(value)
    if number is None or number < 1:
        raise FusionError(f"{name} is a whole number from 1 up; got {value!r}.")
    return number


def divides(name: str, value: int, of: str, total: int) -> int:
    """Return whole / value; raise FusionError where that leaves a rest."""
    if total % value:
        fits = ", ".join(str(d) for d in range(1, min(total, 1000) + 1) if total % d == 0)
        more = ", ..." if total > 1000 else ""
        raise FusionError(f"{name} divides {of}; {name}={value} does not divide {of}={total}. Fitting: {fits}{more}.")
    return total // value


def concatenate(xs: Sequence[Tensor]) -> Tensor:
    """Return [x_1 ... x_k]."""
    return xs[0] if len(xs) == 1 else torch.cat(list(xs), dim=-1)


def concatenate_decomposition(op: Any, xs: Sequence[Any]) -> Any:
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


def accumulate(op: Any, xs: Sequence[Any], parts: Sequence[Any]) -> Any:
    """Write Σ x_i P_i in ONNX, P_i (n_i, m), from left to right: by Gemm, which adds as it multiplies, at rank 2."""
    y = op.MatMul(xs[0], parts[0])
    for x, part in zip(xs[1:], parts[1:], strict=True):
        y = op.Gemm(x, part, y) if op.rank == 2 else op.Add(y, op.MatMul(x, part))
    return y


def transpose(op: Any, matrix: Any) -> Any:
    """Write the transpose of a matrix in ONNX."""
    return op.Transpose(matrix, perm=[1, 0])
