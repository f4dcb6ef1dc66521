"""Mean: y = (x_1 + x_2 + ... + x_k) / k, entry by entry, summed from left to right."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class MeanFusion(EntrywiseFusion):
    """The arithmetic mean of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "Σ x_i / k"
    bitwise = True
    tinybig = ("average_fusion", "mean_fusion")

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, operator.add) / len(xs)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        mean: Array = np.stack(xs).mean(0)
        return mean

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        k = len(xs)  # the division may be a product with the rounded 1 / k: two roundings more than the sum
        share = arithmetic.gamma(k + 1) / k
        return chain([share * x.abs() for x in xs], operator.add) + arithmetic.eta

    def coefficients(self, k: int, w: Tensor | None, *buffers: Tensor) -> Tensor | None:
        """Return 1 / k, k times."""
        return torch.full((k,), 1 / k, dtype=torch.float64)

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        # ONNX has Mean, but ONNX Runtime runs it in float32 on the CPU alone
        return op.Div(chain(xs, op.Add), op.constant(len(xs)))

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Sum of k inputs, which adds from left to right as well."""
        return op.Div(op.Sum(*xs), op.constant(len(xs))) if len(xs) > 2 else NotImplemented
