"""Product: y = x_1 · x_2 · ... · x_k, entry by entry, from left to right."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class ProdFusion(EntrywiseFusion):
    """The product of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "Π x_i"
    bitwise = True
    tinybig = ("prod_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, operator.mul)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        product: Array = np.stack(xs).prod(0)
        return product

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        underflow = xs[0].new_zeros(())
        for x in xs[1:]:
            underflow = underflow * x.abs() + arithmetic.eta
        bound = arithmetic.gamma(len(xs) - 1) * self.fuse(xs, w).abs() + underflow
        # the order is fixed, and so is what overflows; a quarter, so that two of them add up to something finite
        return bound.nan_to_num(nan=0.0).clamp(max=torch.finfo(bound.dtype).max / 4)

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain(xs, op.Mul)
