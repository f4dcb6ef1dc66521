"""What the two weighted sums share: y = a_1 x_1 + a_2 x_2 + ... + a_k x_k, each product rounded, then each sum."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array
from fusion_onnx.fusions._entrywise import chain


def weighted_sum(xs: Sequence[Tensor], a: Tensor) -> Tensor:
    """Return Σ a_i x_i for k tensors (..., n) and weights (k,)."""
    return chain((x * a[i] for i, x in enumerate(xs)), operator.add)


def weighted_reference(xs: Sequence[Array], a: Array) -> Array:
    """Return Σ a_i x_i of the inputs stacked along a new first axis."""
    total: Array = (a.reshape(-1, *[1] * xs[0].ndim) * np.stack(xs)).sum(0)
    return total


def weighted_bound(arithmetic: Arithmetic, xs: Sequence[Tensor], a: Tensor) -> Tensor:
    """Bound what that loses: a rounding for each product, and k - 1 for the sum."""
    k = len(xs)
    share = arithmetic.u + arithmetic.gamma(k - 1) * (1 + arithmetic.u)
    return weighted_sum([share * x.abs() for x in xs], a.abs()) + k * arithmetic.eta


def weighted_chain(op: Any, xs: Sequence[Any], a: Any) -> Any:
    """Write the same in ONNX, product by product."""
    return chain(_products(op, xs, a), op.Add)


def weighted_variadic(op: Any, xs: Sequence[Any], a: Any) -> Any:
    """Write the same with one Sum of k products, which adds from left to right as well."""
    return op.Sum(*_products(op, xs, a)) if len(xs) > 2 else NotImplemented


def weighted_matrix(op: Any, xs: Sequence[Any], a: Any) -> Any:
    """Write aᵀ X as a matrix product, X (k, N) the inputs in rows: in effect a 1×1 convolution."""
    if len(xs) == 1:
        return NotImplemented
    rows = [op.Reshape(x, op.integers([1, -1])) for x in xs]
    row = op.MatMul(op.Reshape(a, op.integers([1, len(xs)])), op.Concat(*rows, axis=0))
    return op.Reshape(row, op.Shape(xs[0]), allowzero=1)


def _products(op: Any, xs: Sequence[Any], a: Any) -> Iterator[Any]:
    parts = [a] if len(xs) == 1 else op.Split(a, axis=0, num_outputs=len(xs), _outputs=len(xs))
    return (op.Mul(x, part) for x, part in zip(xs, parts, strict=True))
