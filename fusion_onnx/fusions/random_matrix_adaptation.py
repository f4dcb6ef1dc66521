"""Random matrix adaptation: y = [x_1 ... x_k] Wᵀ with W = diag(λ1) A diag(λ2) Bᵀ; A and B random and fixed.

Computed from the narrow side, ((x B) λ2) Aᵀ λ1; W is never formed. Elsewhere called VeRA (Kopiczko et al. 2024,
arXiv:2310.11454).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, Case, FusionError, form
from fusion_onnx.contract.options import whole
from fusion_onnx.fusions._projection import (
    ProjectionFusion,
    concatenate,
    concatenate_decomposition,
    cut,
    matrices,
    matrices_decomposition,
    positive,
    transpose,
)


class RandomMatrixAdaptationFusion(ProjectionFusion):
    """Concatenate, then project by W = diag(λ1) A diag(λ2) Bᵀ; n given, l = n + r, w = [λ1 (n,), λ2 (r,)].

    A (n, r) and B (D, r) are standard normal, drawn once from `seed`, and kept as the buffers `a` and `b`.

    Args:
        dims: the input widths.
        n: the output width; n_1 where all widths are equal and it is left out.
        r: the rank; it bounds what gets through, and a small one depends on the luck of the draw.
        seed: of the draw; with one version of torch the same seed gives the same matrices.
    """

    formula = "[x_1 ... x_k] B diag(λ2) Aᵀ diag(λ1)"
    rule_l = "n + r"
    bench_options = {"r": 8}
    tinybig = ("random_matrix_adaption_parameterized_concatenation_fusion",)
    cases = (
        Case(dims=(4, 6, 2), n=5, r=2),
        Case(dims=(3, 3)),
        Case(dims=(5,), n=7, r=3, seed=7),
        Case(dims=(2,) * 16, n=4, r=4),
    )

    def __init__(
        self, dims: Sequence[int] | None = None, *, n: int | None = None, r: int = 2, seed: int = 0, **base: Any
    ) -> None:
        super().__init__(dims, n=n, **base)
        self.r = positive("r", r)
        number = whole(seed)
        if number is None:
            raise FusionError(f"seed is a whole number; got {seed!r}.")
        self.seed = number
        for name, matrix in zip("ab", self._draw(), strict=True):
            self.register_buffer(name, matrix.to(self.device))

    def _draw(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randn(rows, self.r, generator=generator, dtype=torch.float32) for rows in (self.n, self.total)]

    def to_config(self) -> dict[str, Any]:
        """Return the fusion as plain data: the seed stands for the matrices, so they must still be its draw."""
        for buffer, draw in zip(self._buffers.values(), self._draw(), strict=True):
            if buffer is None or not torch.equal(buffer.cpu(), draw.to(buffer.dtype)):
                raise FusionError(
                    f"{self.name}: its random matrices are not the draw of seed={self.seed} any more; "
                    "a config cannot hold them. Save the state_dict beside it."
                )
        return super().to_config()

    def calculate_l(self) -> int:
        """Return n + r."""
        return self.n + self.r

    def reset_parameters(self, w: Tensor) -> None:
        """Fill `w` with λ1 = 1 and λ2 = 1 / √(3 D r): entries of W have variance 1 / (3 D), as in torch.nn.Linear."""
        with torch.no_grad():
            w.fill_(1.0)[..., self.n :] = (3 * self.total * self.r) ** -0.5

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        (a, b), (outer, inner) = buffers, matrices(w, (self.n,), (self.r,))
        return (((concatenate(xs) @ b) * inner) @ a.T) * outer

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        (a, b), (outer, inner) = buffers, matrices(w, (self.n,), (self.r,))
        stages = [(self.total, b.T), (1, inner.unsqueeze(-1)), (self.r, a), (1, outer.unsqueeze(-1))]
        return arithmetic.chain(self.fuse, xs, [w, *buffers], stages)

    @form("factored")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        (a, b), (outer, inner) = buffers, matrices_decomposition(op, w, (self.n,), (self.r,))
        narrow = op.Mul(op.MatMul(concatenate_decomposition(op, xs), b), inner)
        return op.Mul(op.MatMul(narrow, transpose(op, a)), outer)

    @form("folded", propagates_inf=False, bound="folded_bound")
    def decompose_folded(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write (x (B diag(λ2))) (diag(λ1) A)ᵀ: two products, where λ1 and λ2 are constant."""
        (a, b), (outer, inner) = buffers, matrices_decomposition(op, w, (self.n,), (self.r,))
        wide = op.Mul(transpose(op, a), outer)
        return op.MatMul(op.MatMul(concatenate_decomposition(op, xs), op.Mul(b, inner)), wide)

    def folded_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        """Bound what the form "folded" loses: two products with matrices whose entries are rounded once."""
        assert w is not None
        (a, b), (outer, inner) = buffers, matrices(w, (self.n,), (self.r,))
        stages = [(self.total, (b * inner).T), (self.r, a * outer.unsqueeze(-1))]
        return arithmetic.chain(self.fuse, xs, [w, *buffers], stages, 2)

    def matrix(self, w: Array, *buffers: Array) -> Array:
        """Return W = diag(λ1) A diag(λ2) Bᵀ."""
        a, b = buffers
        outer, inner = cut(w, (1, self.n), (1, self.r))
        matrix: Array = outer.T * ((a * inner) @ b.T)
        return matrix

    def matrix_decomposition(self, op: Any, w: Any, *buffers: Any) -> Any:
        """Write the same in ONNX."""
        (a, b), (outer, inner) = buffers, matrices_decomposition(op, w, (self.n,), (self.r,))
        rows = op.MatMul(op.Mul(a, inner), transpose(op, b))
        return op.Mul(rows, op.Reshape(outer, op.integers([self.n, 1])))

    def matrix_roundings(self) -> int:
        """Return r + 2: an inner product of length r, and the two λ."""
        return self.r + 2
