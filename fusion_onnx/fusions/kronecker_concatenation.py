"""Kronecker concatenation ("hypercomplex multiplication"): y = [x_1 ... x_k] Wᵀ with W = A ⊗ B.

See _kronecker.py for the algebra, and for `product="outer"`, which gives tinyBIG's numbers for tinyBIG's weights.
"""

from fusion_onnx.contract import Array, Case
from fusion_onnx.fusions._kronecker import KroneckerBase, Shapes
from fusion_onnx.fusions._projection import cut


class KroneckerConcatenationFusion(KroneckerBase):
    """Concatenate, then project by W = A ⊗ B; n given, l = p q + s t.

    The parameters are w = [A (p, q), B (s, t)], with s = n / p and t = D / q.

    Args:
        dims: the input widths; their sum D is divided by q.
        n: the output width, divided by p; n_1 where all widths are equal and it is left out.
        p, q: the shape of the left factor; q is p where it is left out.
        product: "kronecker", or "outer" for tinyBIG's reshaped outer product.
    """

    formula = "[x_1 ... x_k] (A ⊗ B)ᵀ"
    rule_l = "p q + s t"
    tinybig = ("hm_parameterized_concatenation_fusion",)
    cases = (
        Case(dims=(4, 6, 2), n=6, p=3, q=4),
        Case(dims=(4, 4), p=2),
        Case(dims=(6,), n=8, p=2, q=3),
        Case(dims=(2,) * 16, n=6, p=3, q=2),
        Case(dims=(4, 4, 4), n=4, p=2, q=6, product="outer"),
        Case(dims=(5, 3), n=12, p=3, q=2, product="outer"),
        Case(dims=(4, 2), n=6, p=3, q=3, product="outer"),
    )

    def factor_shapes(self) -> tuple[Shapes, Shapes]:
        """Return the shapes of the factors of L and of R, in the order w holds them."""
        return [(self.p, self.q)], [(self.s, self.t)]

    def calculate_l(self) -> int:
        """Return p q + s t."""
        return self.p * self.q + self.s * self.t

    def matrix(self, w: Array, *buffers: Array) -> Array:
        """Return W = A ⊗ B, or its outer form."""
        a, b = cut(w, (self.p, self.q), (self.s, self.t))
        return self.combined(a, b)

    def factor_count(self) -> tuple[int, int]:
        return 2, 1
