"""Losses whose translation by torch loses what eager execution keeps, and the log softmax in them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch._decomp import decomposition_table

from fusion_exporters.translation._computation import Computation, cast, op, places_along

aten = torch.ops.aten


def translations() -> dict[Any, Any]:
    """Return the table that torch.onnx.export takes."""
    return {
        aten._log_softmax.default: log_softmax,
        aten.log_softmax.int: lambda self, dim, dtype=None: log_softmax(self, dim, False, dtype),
        aten.special_log_softmax.default: lambda self, dim, dtype=None: log_softmax(self, dim, False, dtype),
        aten.cross_entropy_loss.default: _cross_entropy,
        aten.multilabel_margin_loss.default: _multilabel_margin_loss,
    }


@contextlib.contextmanager
def shapes_of_losses() -> Iterator[None]:
    """Let nll_loss and cross_entropy keep the rank of their result in torch's second step, with dynamic sizes.

    torch infers it there by a function that takes `reduction` for another argument, and gives one number for all rows.
    """
    wrong = decomposition_table.pop(aten.nll_loss.default, None)
    try:
        yield
    finally:
        if wrong is not None:
            decomposition_table[aten.nll_loss.default] = wrong


def log_softmax(self: Any, dim: int, half_to_float: bool = False, dtype: Any = None) -> Any:
    """Write x − log Σ exp x; in float64 without the operator, whose kernel makes numbers of Inf and NaN."""
    kind = ir.DataType.FLOAT if half_to_float else self.dtype if dtype in (None, -1) else ir.DataType(dtype)
    x = cast(self, kind)
    scalar = not len(self.shape)
    if scalar:
        x = op.Unsqueeze(x, [0])
    if kind == ir.DataType.DOUBLE:
        difference = op.Sub(x, op.ReduceMax(x, [dim]))
        y = op.Sub(difference, op.Log(op.ReduceSum(op.Exp(difference), [dim])))
    else:
        y = op.LogSoftmax(x, axis=dim)
    return op.Squeeze(y, [0]) if scalar else y


def _cross_entropy(
    self: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100, label_smoothing: float = 0
) -> Any:
    """Write the loss of the log softmax, which the operator for both together computes as its own in float64."""
    if label_smoothing or target.dtype.is_floating_point() or len(self.shape) < 2:
        return _smooth_cross_entropy(self, target, weight, reduction, ignore_index, label_smoothing)
    options = {"reduction": ("none", "mean", "sum")[reduction], "ignore_index": ignore_index}
    if self.dtype != ir.DataType.DOUBLE:
        return op.SoftmaxCrossEntropyLoss(self, target, weight, **options)[0]
    return op.NegativeLogLikelihoodLoss(log_softmax(self, 1), target, weight, **options)


def _smooth_cross_entropy(
    self: Any, target: Any, weight: Any, reduction: int, ignore_index: int, smoothing: float
) -> Any:
    """Write −Σ w_c q_c log p_c over classes c, with q_c = (1 − ε) t_c + ε / C for a target t and a smoothing ε.

    The mean over rows is divided by their number; where the targets are classes, by the sum of these classes' weights.
    """
    as_eager = Computation(self)
    axis = min(len(self.shape) - 1, 1)
    logs = log_softmax(self, axis, dtype=as_eager.dtype)
    count = op.Cast(op.Squeeze(op.Shape(self, start=axis, end=axis + 1)), to=as_eager.dtype)
    target_share, uniform_share = as_eager.number(1 - smoothing), op.Div(as_eager.number(smoothing), count)
    weight = None if weight is None else as_eager.wide(weight)
    spatial_axes = list(range(1, len(self.shape) - axis))
    scale = op.Unsqueeze(weight, spatial_axes) if weight is not None and spatial_axes else weight
    of_classes = logs if scale is None else op.Mul(logs, scale)
    if target.dtype.is_floating_point():
        share = op.Add(op.Mul(as_eager.wide(target), target_share), uniform_share)
        losses = op.Neg(op.ReduceSum(op.Mul(of_classes, share), [axis], keepdims=False))
        total = op.Cast(op.Size(losses), to=as_eager.dtype)
    else:
        zero = as_eager.number(0.0)
        valid = op.Not(op.Equal(target, op.CastLike(op.Constant(value_int=ignore_index), target)))
        classes = op.Where(valid, target, op.CastLike(op.Constant(value_int=0), target))
        target_logs = op.Squeeze(op.GatherElements(of_classes, op.Unsqueeze(classes, [axis]), axis=axis), [axis])
        all_classes = op.ReduceSum(of_classes, [axis], keepdims=False)
        losses = op.Where(
            valid, op.Neg(op.Add(op.Mul(target_logs, target_share), op.Mul(all_classes, uniform_share))), zero
        )
        of_target = as_eager.number(1.0) if weight is None else op.Gather(weight, classes)
        total = op.ReduceSum(op.Where(valid, of_target, zero), keepdims=False)
    if reduction:
        losses = op.ReduceSum(losses, keepdims=False)
    return as_eager.back(op.Div(losses, total) if reduction == 1 else losses)


def _reduce(loss: Any, reduction: int, scalar: bool) -> Any:
    """Return the losses of the rows, their mean or their sum; of one row that had no axis, a number."""
    if reduction or scalar:
        loss = (op.ReduceSum if reduction == 2 else op.ReduceMean)(loss, keepdims=False)
    return loss


def _multilabel_margin_loss(self: Any, target: Any, reduction: int = 1) -> Any:
    """Write the sum over targets t and other classes c of what 1 − x_t + x_c is above 0, over the number of classes.

    The targets of a row are those in front of its first −1. What is not above 0, NaN too, counts as 0.
    """
    as_eager = Computation(self)
    x = as_eager.wide(self) if len(self.shape) == 2 else op.Reshape(as_eager.wide(self), [1, -1])
    target = op.Reshape(target, op.Shape(x))
    places, count = places_along(x), op.Shape(x, start=-1)
    end = op.ReduceMin(op.Where(op.Equal(target, op.Constant(value_int=-1)), places, count), [1])
    valid = op.Less(places, end)
    classes = op.Where(valid, target, op.Constant(value_int=0))
    of_target = op.Unsqueeze(valid, [2])
    is_target = op.And(op.Equal(op.Unsqueeze(classes, [2]), places), of_target)
    is_other = op.Equal(op.ReduceMax(op.Cast(is_target, to=ir.DataType.INT64), [1]), op.Constant(value_int=0))
    z = op.Sub(as_eager.number(1.0), op.Unsqueeze(op.GatherElements(x, classes, axis=1), [2]))
    z = op.Add(z, op.Unsqueeze(x, [1]))
    counts = op.And(op.And(op.Greater(z, as_eager.number(0.0)), of_target), is_other)
    sums = op.ReduceSum(op.Where(counts, z, as_eager.number(0.0)), [1, 2], keepdims=False)
    return as_eager.back(_reduce(op.Div(sums, op.Cast(count, to=as_eager.dtype)), reduction, len(self.shape) < 2))
