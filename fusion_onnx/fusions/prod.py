"""Product: y = x_1 · x_2 · ... · x_k, entry by entry, from left to right."""

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class ProdFusion(EntrywiseFusion):
    """The product of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "Π x_i"
    tinybig = ("prod_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, operator.mul)

    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain(xs, op.Mul)
