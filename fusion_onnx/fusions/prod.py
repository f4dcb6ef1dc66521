"""Product: y = x_1 · x_2 · ... · x_k, entry by entry, from left to right."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.arithmetic import Arithmetic
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class ProdFusion(EntrywiseFusion):
    """The product of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "Π x_i"
    bitwise = True
    tinybig = ("prod_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, operator.mul)

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        k, y = len(xs), self.fuse(xs, w)
        largest = chain([x.abs() for x in xs], torch.maximum).clamp(min=1)
        bound = arithmetic.gamma(k - 1) * y.abs() + k * arithmetic.eta * largest ** (k - 1)
        return bound.nan_to_num(posinf=torch.finfo(bound.dtype).max)  # the order is fixed, and so is what overflows

    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain(xs, op.Mul)
