"""Minimum: y = min(x_1, x_2, ..., x_k), entry by entry; NaN where any x_i is NaN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class MinFusion(EntrywiseFusion):
    """The smallest of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "min x_i"
    selects_only = True
    bitwise = True
    tinybig = ("min_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, torch.minimum)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        smallest: Array = np.stack(xs).min(0)
        return smallest

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain(xs, op.Min)  # ReduceMin would lose NaN

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Min of k inputs."""
        return op.Min(*xs) if len(xs) > 2 else NotImplemented
