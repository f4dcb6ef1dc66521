"""L2 norm: y = √(x_1² + x_2² + ... + x_k²), entry by entry; for k = 1, |x_1|, which cannot overflow.

The gradient x_i / y is taken as 0 where all x_i are 0, as torch.linalg.vector_norm has it.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class L2NormFusion(EntrywiseFusion):
    """The L2 norm over k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "√Σ x_i²"
    tinybig = ("l2_norm_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        if len(xs) == 1:
            return xs[0].abs()
        squares = chain((x * x for x in xs), operator.add)
        zero = squares == 0
        # √ has an infinite slope at 0, which would make every gradient there NaN
        return torch.where(zero, squares, torch.where(zero, 1, squares).sqrt())

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        norm: Array = np.linalg.norm(np.stack(xs), 2, axis=0)
        return norm

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        k = len(xs)
        if k == 1:
            return xs[0].new_zeros(())
        # √ halves the share the sum lost, and loses up to an ulp, 2 u; an underflow of k squares comes out as √(k η)
        squares = chain((x * x for x in xs), operator.add)
        share: float = arithmetic.gamma(k) / 2 + 2 * arithmetic.u
        e = share * squares.sqrt() + float((k * arithmetic.eta) ** 0.5)
        e = e.clamp(max=torch.finfo(e.dtype).max / 4)  # what overflows in float64 does so in whatever is computed in
        return torch.where(arithmetic.may_overflow(squares, arithmetic.gamma(k) * squares), torch.inf, e)

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        if len(xs) == 1:
            return op.Abs(xs[0])
        return op.Sqrt(chain((op.Mul(x, x) for x in xs), op.Add))

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Sum of k squares."""
        return op.Sqrt(op.Sum(*[op.Mul(x, x) for x in xs])) if len(xs) > 2 else NotImplemented
