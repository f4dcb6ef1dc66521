"""Maximum: y = max(x_1, x_2, ..., x_k), entry by entry; NaN where any x_i is NaN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class MaxFusion(EntrywiseFusion):
    """The largest of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "max x_i"
    selects_only = True
    bitwise = True
    tinybig = ("max_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain(xs, torch.maximum)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        largest: Array = np.stack(xs).max(0)
        return largest

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain(xs, op.Max)  # ReduceMax would lose NaN

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Max of k inputs."""
        return op.Max(*xs) if len(xs) > 2 else NotImplemented
