"""Median: the lower middle of k values, y = sort(x_1[e], ..., x_k[e])[(k - 1) // 2]; NaN where any of them is NaN.

Comparators (a, b) -> (min, max) alone, the same for all entries: each half of the inputs is sorted by Batcher's merge
exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M), into a_1 ≤ ... ≤ a_m and b_1 ≤ ... . The m-th
smallest of all is then the least max(a_i, b_j) with i + j = m, where a_0 and b_0 count for nothing: one of these is it,
and every other is an upper bound. min and max of torch and of ONNX hand NaN on, and every input has a path to the
output, so a NaN anywhere arrives there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Array, form
from fusion_onnx.fusions._entrywise import EntrywiseFusion

T = TypeVar("T")


class MedianFusion(EntrywiseFusion):
    """The lower median of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "lower median of x_i"
    selects_only = True
    bitwise = True
    tinybig = ("median_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return select_median(xs, torch.minimum, torch.maximum)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        values = np.sort(np.stack(xs), axis=0)  # NaN comes last
        middle: Array = np.where(np.isnan(values[-1]), values[-1], values[(len(xs) - 1) // 2])
        return middle

    @form("network")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return select_median(xs, op.Min, op.Max)


def select_median(xs: Sequence[T], minimum: Callable[[T, T], T], maximum: Callable[[T, T], T]) -> T:
    """Return the lower median of k values by comparators."""
    m = (len(xs) + 1) // 2
    a, b = (_in_order(half, minimum, maximum) for half in (xs[:m], xs[m:]))
    ends = [a[m - 1], *b[m - 1 :]]  # those with a_0 and, for an even k, with b_0
    return functools.reduce(minimum, [*ends, *map(maximum, a, reversed(b[: m - 1]))])


def _in_order(xs: Sequence[T], minimum: Callable[[T, T], T], maximum: Callable[[T, T], T]) -> list[T]:
    wires = list(xs)
    for i, j in merge_exchange(len(xs)):
        a, b = wires[i], wires[j]
        wires[i], wires[j] = minimum(a, b), maximum(a, b)
    return wires


def merge_exchange(k: int) -> tuple[tuple[int, int], ...]:
    """Return the comparators (i, j) that put k values in order, the smaller one of each pair to i."""
    comparators = []
    top = 1 << max(k - 1, 0).bit_length() >> 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            comparators += [(i, i + d) for i in range(k - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(comparators)
