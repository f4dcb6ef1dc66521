"""Sum: y = x_1 + x_2 + ... + x_k, entry by entry, from left to right."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class SumFusion(EntrywiseFusion):
    """The sum of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "Σ x_i"
    bitwise = True
    tinybig = ("summation_fusion", "sum_fusion")

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, operator.add)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        total: Array = np.stack(xs).sum(0)
        return total

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        share = arithmetic.gamma(len(xs) - 1)  # of each, for the sum of the sizes may overflow
        return chain([share * x.abs() for x in xs], operator.add)

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain(xs, op.Add)

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Sum of k inputs, which adds from left to right as well."""
        return op.Sum(*xs) if len(xs) > 2 else NotImplemented
