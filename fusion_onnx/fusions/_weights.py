"""What the two weighted sums share: y = a_1 x_1 + a_2 x_2 + ... + a_k x_k, each product rounded, then each sum."""

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusion_onnx.arithmetic import Arithmetic
from fusion_onnx.fusions._entrywise import chain


def weighted(xs: Sequence[Tensor], a: Tensor) -> Tensor:
    """Return Σ a_i x_i for k tensors (..., n) and weights (k,)."""
    return chain([x * a[i] for i, x in enumerate(xs)], operator.add)


def weighted_bound(arithmetic: Arithmetic, xs: Sequence[Tensor], a: Tensor) -> Tensor:
    """Bound what that loses: a rounding for each product, and k - 1 for the sum."""
    k = len(xs)
    share = arithmetic.u + arithmetic.gamma(k - 1) * (1 + arithmetic.u)
    return weighted([share * x.abs() for x in xs], a.abs()) + k * arithmetic.eta


def weighted_decomposition(op: Any, xs: Sequence[Any], a: Any) -> Any:
    """Write the same in ONNX."""
    parts = [a] if len(xs) == 1 else op.Split(a, axis=0, num_outputs=len(xs), _outputs=len(xs))
    return chain([op.Mul(x, part) for x, part in zip(xs, parts, strict=True)], op.Add)
