"""Dual low-rank Kronecker concatenation: y = [x_1 ... x_k] Wᵀ with W = (P Q) ⊗ (S T), both of rank r.

See _kronecker.py for the algebra, and for `product="outer"`, which gives tinyBIG's numbers for tinyBIG's weights.
"""

from collections.abc import Sequence
from typing import Any

from fusion_onnx.contract import Array, Case
from fusion_onnx.fusions._kronecker import KroneckerBase, Shapes
from fusion_onnx.fusions._projection import cut, positive


class DualLowRankKroneckerConcatenationFusion(KroneckerBase):
    """Concatenate, then project by W = (P Q) ⊗ (S T); n given, l = r (p + q + s + t).

    The parameters are w = [P (p, r), Q (r, q), S (s, r), T (r, t)], with s = n / p and t = D / q.

    Args:
        dims: the input widths; their sum D is divided by q.
        n: the output width, divided by p; n_1 where all widths are equal and it is left out.
        p, q: the shape of the left factor; q is p where it is left out.
        r: the rank of the inner factors.
        product: "kronecker", or "outer" for tinyBIG's reshaped outer product.
    """

    formula = "[x_1 ... x_k] ((P Q) ⊗ (S T))ᵀ"
    rule_l = "r (p + q + s + t)"
    bench_options = {"p": 32, "q": 32, "r": 8}
    tinybig = ("dual_lphm_parameterized_concatenation_fusion",)
    cases = (
        Case(dims=(4, 6, 2), n=6, p=3, q=4, r=2),
        Case(dims=(4, 4), p=2),
        Case(dims=(6,), n=8, p=2, q=3, r=1),
        Case(dims=(4, 4, 4), n=4, p=2, q=6, r=2, product="outer"),
        Case(dims=(5, 3), n=12, p=3, q=2, r=2, product="outer"),
        Case(dims=(4, 2), n=6, p=3, q=3, r=1, product="outer"),
    )

    def __init__(self, dims: Sequence[int] | None = None, *, r: int = 2, **base: Any) -> None:
        super().__init__(dims, **base)
        self.r = positive("r", r)

    def factor_shapes(self) -> tuple[Shapes, Shapes]:
        """Return the shapes of the factors of L and of R, in the order w holds them."""
        return [(self.p, self.r), (self.r, self.q)], [(self.s, self.r), (self.r, self.t)]

    def calculate_l(self) -> int:
        """Return r (p + q + s + t)."""
        return self.r * (self.p + self.q + self.s + self.t)

    def matrix(self, w: Array, *buffers: Array) -> Array:
        """Return W = (P Q) ⊗ (S T), or its outer form."""
        p, q, s, t = cut(w, (self.p, self.r), (self.r, self.q), (self.s, self.r), (self.r, self.t))
        return self.combined(p @ q, s @ t)

    def factor_count(self) -> tuple[int, int]:
        return 4, self.r**2
