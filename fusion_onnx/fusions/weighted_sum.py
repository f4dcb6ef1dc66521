"""Weighted sum: y = a_1 x_1 + a_2 x_2 + ... + a_k x_k with fixed weights a, or with trained ones on request."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, Case, FusionError, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion
from fusion_onnx.fusions._weights import (
    weighted_bound,
    weighted_chain,
    weighted_matrix,
    weighted_reference,
    weighted_sum,
    weighted_variadic,
)


class WeightedSumFusion(EntrywiseFusion):
    """The weighted sum of k tensors (..., n) of one shape; n = n_1, l = 0, or k with `require_parameters=True`.

    Args:
        dims: the input widths, all equal; may be left out.
        weights: k numbers, kept as the buffer `weights`; left out, all are 1. With `require_parameters=True` they are
            where training starts.
        dtype: of the weights ("float64", ...), by default that of a tensor given, else torch's default. They are
            converted to the inputs' when the fusion is called.
    """

    formula = "Σ a_i x_i"
    bitwise = True
    parameter_free = False
    rule_l = "0, or k if trained"
    tinybig = ("weighted_summation_fusion",)
    cases = (
        Case(dims=(8, 8), weights=[0.25, -1.5]),
        Case(dims=(5, 5, 5), weights=[1.0, 0.1, 3.7]),
        Case(dims=(4, 4, 4, 4)),
        Case(dims=(3,), weights=[2.0]),
        Case(dims=(6, 6, 6), require_parameters=True),
    )

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        *,
        weights: Sequence[float] | Tensor | None = None,
        dtype: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(dims, **base)
        self.dtype = dtype
        kind = _dtype(weights, dtype)
        values = None
        if weights is not None:
            values = torch.as_tensor(weights, dtype=kind, device=self.device).detach().clone()
            count = self.get_num() or values.numel()
            if values.ndim != 1 or values.numel() != count:
                raise FusionError(f"{self.name}: weights are {count} numbers; got shape {list(values.shape)}.")
        elif self.dims is not None:
            values = torch.ones(len(self.dims), dtype=kind, device=self.device)
        if self.require_parameters:
            self.weights = None if weights is None or values is None else values.tolist()
        else:
            self.register_buffer("weights", values)

    def to_config(self) -> dict[str, Any]:
        """Return the fusion as plain data, the weights in the dtype they have now."""
        config = super().to_config()
        if isinstance(self.weights, Tensor):
            config["function_parameters"]["dtype"] = str(self.weights.dtype).removeprefix("torch.")
        return config

    def calculate_l(self) -> int:
        """Return k where the weights are trained, else 0."""
        if not self.require_parameters:
            return 0
        if self.dims is None:
            raise FusionError(f"{self.name}: l = k; give dims.")
        return len(self.dims)

    def parameter_count(self, xs: Sequence[Tensor]) -> int:
        return len(xs) if self.require_parameters else 0

    def reset_parameters(self, w: Tensor) -> None:
        """Fill `w` with the given weights, or with 1/k."""
        with torch.no_grad():
            w.copy_(torch.as_tensor(self.weights or [1 / w.numel()] * w.numel()).reshape(w.shape))

    def check_inputs(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Check the inputs, and that there are as many as weights."""
        xs = super().check_inputs(x)
        if self.weights is not None and len(self.weights) != len(xs):
            raise FusionError(f"{self.name}: {len(self.weights)} weights want as many inputs; got {len(xs)}.")
        return xs

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return weighted_sum(xs, self._weights(xs, w, buffers))

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        weights = [w] if w is not None else self.buffer_arrays()
        return weighted_reference(xs, weights[0]) if weights else np.stack(xs).sum(0)

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return weighted_bound(arithmetic, xs, self._weights(xs, w, buffers))

    def coefficients(self, k: int, w: Tensor | None, *buffers: Tensor) -> Tensor | None:
        """Return the weights."""
        return w if w is not None else buffers[0] if buffers else torch.ones(k)

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return weighted_chain(op, xs, self._weights_decomposition(op, xs, w, buffers))

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Sum of k products."""
        return weighted_variadic(op, xs, self._weights_decomposition(op, xs, w, buffers))

    @form("matrix", bitwise=False)
    def decompose_matrix(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same as a product of the weights (1, k) and the inputs in rows (k, N)."""
        return weighted_matrix(op, xs, self._weights_decomposition(op, xs, w, buffers))

    @staticmethod
    def _weights_decomposition(op: Any, xs: Sequence[Any], w: Any, buffers: Sequence[Any]) -> Any:
        return w if w is not None else buffers[0] if buffers else op.constant([1] * len(xs))

    @staticmethod
    def _weights(xs: Sequence[Tensor], w: Tensor | None, buffers: Sequence[Tensor]) -> Tensor:
        return w if w is not None else buffers[0] if buffers else xs[0].new_ones(len(xs))


def _dtype(weights: Any, name: str | None) -> torch.dtype:
    if name is None:
        floating = isinstance(weights, Tensor) and weights.is_floating_point()
        return weights.dtype if floating else torch.get_default_dtype()
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise FusionError(f"weights are float16, bfloat16, float32 or float64; got dtype={name!r}.")
    kind: torch.dtype = getattr(torch, name)
    return kind
