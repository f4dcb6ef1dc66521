"""Low-rank concatenation: y = [x_1 ... x_k] Wᵀ with W = A B of rank r, computed as (x Bᵀ) Aᵀ; W is never formed."""

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
    positive,
    transpose,
)


class LowRankConcatenationFusion(ProjectionFusion):
    """Concatenate, then project by W = A B; n given, l = r (n + D), w = [A (n, r), B (r, D)].

    Args:
        dims: the input widths.
        n: the output width; n_1 where all widths are equal and it is left out.
        r: the rank; it bounds what gets through, so a quarter of n is a better start than the default.
    """

    formula = "([x_1 ... x_k] Bᵀ) Aᵀ"
    rule_l = "r (n + D)"
    bench_options = {"r": 8}
    tinybig = ("lowrank_parameterized_concatenation_fusion",)
    cases = (
        Case(dims=(4, 6, 2), n=5, r=2),
        Case(dims=(3, 3)),
        Case(dims=(5,), n=7, r=3),
        Case(dims=(2,) * 16, n=4, r=1),
    )

    def __init__(self, dims: Sequence[int] | None = None, *, n: int | None = None, r: int = 2, **base: Any) -> None:
        super().__init__(dims, n=n, **base)
        self.r = positive("r", r)

    def calculate_l(self) -> int:
        """Return r (n + D)."""
        return self.r * (self.n + self.total)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        a, b = matrices(w, (self.n, self.r), (self.r, self.total))
        return (concatenate(xs) @ b.T) @ a.T

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        a, b = matrices(w, (self.n, self.r), (self.r, self.total))
        return arithmetic.chain(self.fuse, xs, [w], [(self.total, b), (self.r, a)])

    @form("factored")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        a, b = matrices_decomposition(op, w, (self.n, self.r), (self.r, self.total))
        return op.MatMul(op.MatMul(concatenate_decomposition(op, xs), transpose(op, b)), transpose(op, a))

    @form("accumulated")
    def decompose_accumulated(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write (Σ x_i B_iᵀ) Aᵀ, which makes no concatenated copy; B_i are the columns of B that meet x_i."""
        if len(xs) == 1:
            return NotImplemented
        a, b = matrices_decomposition(op, w, (self.n, self.r), (self.r, self.total))
        parts = op.Split(transpose(op, b), op.integers(self.dims or ()), axis=0, _outputs=len(xs))
        return op.MatMul(accumulate(op, xs, parts), transpose(op, a))

    def matrix(self, w: Array, *buffers: Array) -> Array:
        """Return W = A B."""
        a, b = cut(w, (self.n, self.r), (self.r, self.total))
        matrix: Array = a @ b
        return matrix

    def matrix_decomposition(self, op: Any, w: Any, *buffers: Any) -> Any:
        """Write W = A B in ONNX."""
        return op.MatMul(*matrices_decomposition(op, w, (self.n, self.r), (self.r, self.total)))

    def matrix_roundings(self) -> int:
        """Return r, the length of the inner products in A B."""
        return self.r

    def factor_count(self) -> tuple[int, int]:
        return 2, self.r
