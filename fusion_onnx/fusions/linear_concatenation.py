"""Linear concatenation: y = [x_1 ... x_k] Wᵀ, W (n, D); w = vec(W), row-major."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, Case, form
from fusion_onnx.fusions._projection import (
    ProjectionFusion,
    accumulate,
    concatenate,
    concatenate_decomposition,
    cut,
    matrices,
    matrices_decomposition,
    transpose,
)


class LinearConcatenationFusion(ProjectionFusion):
    """Concatenate k tensors (..., n_i), then project: n given (default n_1 where all are equal), l = n D."""

    formula = "[x_1 ... x_k] Wᵀ"
    rule_l = "n D"
    tinybig = ("parameterized_concatenation_fusion",)
    cases = (Case(dims=(4, 6, 2), n=5), Case(dims=(3, 3)), Case(dims=(5,), n=7), Case(dims=(2,) * 16, n=1))

    def calculate_l(self) -> int:
        """Return n D."""
        return self.n * self.total

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        (matrix,) = matrices(w, (self.n, self.total))
        return concatenate(xs) @ matrix.T

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        return arithmetic.chain(self.fuse, xs, [w], [(self.total, w.reshape(self.n, self.total))])

    def matrix(self, w: Array, *buffers: Array) -> Array:
        """Return W."""
        (matrix,) = cut(w, (self.n, self.total))
        return matrix

    @form("joined")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        (matrix,) = matrices_decomposition(op, w, (self.n, self.total))
        return op.MatMul(concatenate_decomposition(op, xs), transpose(op, matrix))

    @form("accumulated")
    def decompose_accumulated(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write Σ x_i W_iᵀ, which makes no concatenated copy; W_i are the columns of W that meet x_i."""
        if len(xs) == 1:
            return NotImplemented
        (matrix,) = matrices_decomposition(op, w, (self.n, self.total))
        parts = op.Split(transpose(op, matrix), op.integers(self.dims or ()), axis=0, _outputs=len(xs))
        return accumulate(op, xs, parts)
