"""Median: the lower middle of k values, y = sort(x_1[e], ..., x_k[e])[(k - 1) // 2]; NaN where any of them is NaN.

No sorting: a selection network, that is a fixed sequence of comparators (a, b) -> (min, max), here Batcher's merge
exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M) cut down to what the middle value needs. min
and max of torch and of ONNX hand NaN on, and every input has a path to the middle, so a NaN anywhere arrives there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fusion_onnx.forms import form
from fusion_onnx.fusions._entrywise import EntrywiseFusion

T = TypeVar("T")


class MedianFusion(EntrywiseFusion):
    """The lower median of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "lower median of x_i"
    exact = True
    bitwise = True
    tinybig = ("median_fusion",)

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        return select_median(xs, torch.minimum, torch.maximum)

    @form("network")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return select_median(xs, op.Min, op.Max)


def select_median(xs: Sequence[T], minimum: Callable[[T, T], T], maximum: Callable[[T, T], T]) -> T:
    """Run the median's network on k values."""
    wires = list(xs)
    for i, j, wants_low, wants_high in median_network(len(xs)):
        a, b = wires[i], wires[j]
        if wants_low:
            wires[i] = minimum(a, b)
        if wants_high:
            wires[j] = maximum(a, b)
    return wires[(len(xs) - 1) // 2]


@functools.cache
def median_network(k: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return the comparators in order: (i, j, whether i is to hold the minimum, whether j is to hold the maximum)."""
    needed = {(k - 1) // 2}
    kept = []
    for i, j in reversed(list(_merge_exchange(k))):
        wants = (i in needed, j in needed)
        if any(wants):
            needed |= {i, j}
            kept.append((i, j, *wants))
    return tuple(reversed(kept))


def _merge_exchange(k: int) -> Sequence[tuple[int, int]]:
    comparators = []
    top = 1 << max(k - 1, 0).bit_length() >> 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            comparators += [(i, i + d) for i in range(k - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return comparators
