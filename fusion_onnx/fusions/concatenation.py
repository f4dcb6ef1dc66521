"""Concatenation: y = [x_1 x_2 ... x_k] on the last axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Array, Case, Fusion, FusionError


class ConcatenationFusion(Fusion):
    """k tensors (..., n_i) side by side; n = D = n_1 + ... + n_k, l = 0."""

    formula = "[x_1 ... x_k]"
    rule_n = "D"
    selects_only = True
    bitwise = True
    tinybig = ("concatenation_fusion",)
    cases = (Case(dims=(4, 6, 2)), Case(dims=(3, 3)), Case(dims=(5,)), Case(dims=tuple(range(1, 17))))

    def calculate_n(self, dims: Sequence[int] | None = None) -> int:
        """Return D, the sum of the widths."""
        dims = self.dims if dims is None else dims
        if not dims:
            raise FusionError(f"{self.name}: n is the sum of the input widths; give dims.")
        return sum(dims)

    def calculate_l(self) -> int:
        """Return 0: nothing is trained."""
        return 0

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return torch.cat(list(xs), dim=-1)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        return np.concatenate(xs, axis=-1)

    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return op.Concat(*xs, axis=-1)
