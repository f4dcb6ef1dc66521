"""L1 norm: y = |x_1| + |x_2| + ... + |x_k|, entry by entry, from left to right."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class L1NormFusion(EntrywiseFusion):
    """The L1 norm over k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "Σ |x_i|"
    bitwise = True
    tinybig = ("l1_norm_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return chain((x.abs() for x in xs), operator.add)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        norm: Array = np.linalg.norm(np.stack(xs), 1, axis=0)
        return norm

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        share = arithmetic.gamma(len(xs) - 1)  # of each, for the sum may overflow
        return self.fuse([share * x for x in xs], w)

    @form("chain")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return chain((op.Abs(x) for x in xs), op.Add)

    @form("variadic")
    def decompose_variadic(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same with one Sum of k sizes."""
        return op.Sum(*[op.Abs(x) for x in xs]) if len(xs) > 2 else NotImplemented
