"""Learned weighted sum: y = w_1 x_1 + w_2 x_2 + ... + w_k x_k."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, FusionError, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion
from fusion_onnx.fusions._weights import (
    weighted_bound,
    weighted_chain,
    weighted_matrix,
    weighted_reference,
    weighted_sum,
    weighted_variadic,
)


class LearnedWeightedSumFusion(EntrywiseFusion):
    """The weighted sum of k tensors (..., n) of one shape with trained weights; n = n_1, l = k, w = [w_1, ..., w_k]."""

    formula = "Σ w_i x_i"
    bitwise = True
    parameter_free = False
    rule_l = "k"
    tinybig = ("parameterized_weighted_summation_fusion",)

    def __init__(self, dims: Sequence[int] | None = None, *, require_parameters: bool = True, **base: Any) -> None:
        super().__init__(dims, require_parameters=require_parameters, **base)
        if not require_parameters:
            raise FusionError("learned_weighted_sum is trained; for fixed weights take weighted_sum.")

    def calculate_l(self) -> int:
        """Return k."""
        if self.dims is None:
            raise FusionError(f"{self.name}: l = k; give dims.")
        return len(self.dims)

    def parameter_count(self, xs: Sequence[Tensor]) -> int:
        return len(xs)

    def reset_parameters(self, w: Tensor) -> None:
        """Fill `w` with 1/k: training starts from the mean."""
        torch.nn.init.constant_(w, 1 / w.numel())

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        return weighted_sum(xs, w)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        assert w is not None
        return weighted_reference(xs, w)

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        return weighted_bound(arithmetic, xs, w)

    def coefficients(self, k: int, w: Tensor | None, *buffers: Tensor) -> Tensor | None:
        """Return w."""
        return w

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return weighted_chain(op, xs, w)

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Sum of k products."""
        return weighted_variadic(op, xs, w)

    @form("matrix", bitwise=False)
    def decompose_matrix(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same as a product of the weights (1, k) and the inputs in rows (k, N)."""
        return weighted_matrix(op, xs, w)
