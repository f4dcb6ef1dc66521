"""Operators whose translation by torch loses what eager execution keeps: digits of small values, NaN, a dtype."""

import math
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18  # its types are of tensors; here it takes what torch.onnx.export traces
aten = torch.ops.aten


def translations() -> dict[Any, Any]:
    """Return the table that torch.onnx.export takes."""
    return {
        aten.log1p.default: _log1p,
        aten.log_sigmoid.default: _log_sigmoid,
        aten.softplus.default: _softplus,
        aten.logaddexp.default: _logaddexp,
        aten.logaddexp2.default: _logaddexp2,
        aten.atan2.default: _atan2,
        aten.remainder.Tensor: _remainder,
        aten.remainder.Scalar: _remainder,
        aten.remainder.Scalar_Tensor: _remainder,
        aten._log_softmax.default: _log_softmax,
    }


class _Computation:
    """What eager execution computes with where it is given x: float32 for what is shorter, else x's own dtype."""

    def __init__(self, *xs: Any) -> None:
        self.given = next(dtype for dtype in (getattr(x, "dtype", None) for x in xs) if dtype is not None)
        self.short = self.given in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        self.dtype = ir.DataType.FLOAT if self.short else self.given

    def number(self, number: float) -> Any:
        return op.Constant(value=ir.tensor(number, dtype=self.dtype))

    def wide(self, x: Any) -> Any:
        if not isinstance(x, ir.Value):
            return self.number(x)
        return op.Cast(x, to=self.dtype) if self.short else x

    def back(self, y: Any) -> Any:
        return op.Cast(y, to=self.given) if self.short else y

    def log1p(self, x: Any) -> Any:
        """Write log(1 + x) with all digits of a small x: what 1 + x loses of x is put back as a factor."""
        u = op.Add(x, self.number(1.0))
        kept = op.Sub(u, self.number(1.0))
        log = op.Log(u)
        small = op.Where(op.Equal(kept, self.number(0.0)), x, op.Mul(x, op.Div(log, kept)))
        return op.Where(op.Equal(kept, x), log, small)

    def negative(self, x: Any) -> Any:
        """Return whether a number has a minus; a zero may have one too."""
        zero = self.number(0.0)
        return op.Or(op.Less(x, zero), op.Less(op.Div(self.number(1.0), x), zero))

    def gap(self, x: Any, y: Any) -> Any:
        """Return −|x − y|; of what is equal, two infinities too, 0."""
        return op.Where(op.Equal(x, y), self.number(0.0), op.Neg(op.Abs(op.Sub(x, y))))


def _log1p(self: Any) -> Any:
    as_eager = _Computation(self)
    return as_eager.back(as_eager.log1p(as_eager.wide(self)))


def _log_sigmoid(self: Any) -> Any:
    """Write min(x, 0) − log(1 + exp −|x|)."""
    as_eager = _Computation(self)
    x = as_eager.wide(self)
    return as_eager.back(op.Sub(op.Min(x, as_eager.number(0.0)), as_eager.log1p(op.Exp(op.Neg(op.Abs(x))))))


def _softplus(self: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """Write log(1 + exp βx) / β, where βx is not above the threshold."""
    as_eager = _Computation(self)
    x, scale = as_eager.wide(self), as_eager.number(beta)
    scaled = op.Mul(x, scale)
    y = op.Div(as_eager.log1p(op.Exp(scaled)), scale)
    return as_eager.back(op.Where(op.Greater(scaled, as_eager.number(threshold)), x, y))


def _logaddexp(self: Any, other: Any) -> Any:
    """Write max(x, y) + log(1 + exp −|x − y|)."""
    as_eager = _Computation(self)
    x, y = as_eager.wide(self), as_eager.wide(other)
    return as_eager.back(op.Add(op.Max(x, y), as_eager.log1p(op.Exp(as_eager.gap(x, y)))))


def _logaddexp2(self: Any, other: Any) -> Any:
    as_eager = _Computation(self)
    x, y, unit = as_eager.wide(self), as_eager.wide(other), as_eager.number(math.log(2))
    more = as_eager.log1p(op.Exp(op.Mul(as_eager.gap(x, y), unit)))
    return as_eager.back(op.Add(op.Max(x, y), op.Div(more, unit)))


def _atan2(self: Any, other: Any) -> Any:
    """Write the angle from the shorter over the longer side, which no quadrant, zero, infinity or NaN disturbs."""
    as_eager = _Computation(self)
    y, x = as_eager.wide(self), as_eager.wide(other)
    zero, one, infinity = map(as_eager.number, (0.0, 1.0, math.inf))
    a, b = op.Abs(y), op.Abs(x)
    shorter, longer = op.Min(a, b), op.Max(a, b)
    slope = op.Where(op.Equal(longer, zero), zero, op.Div(shorter, longer))
    angle = op.Atan(op.Where(op.Equal(shorter, infinity), one, slope))
    angle = op.Where(op.Greater(a, b), op.Sub(as_eager.number(math.pi / 2), angle), angle)
    angle = op.Where(as_eager.negative(x), op.Sub(as_eager.number(math.pi), angle), angle)
    return as_eager.back(op.Where(as_eager.negative(y), op.Neg(angle), angle))


def _remainder(self: Any, other: Any) -> Any:
    """Write x − ⌊x / y⌋ y by the rest of the division, which is exact; the quotient's own rounding is not."""
    as_eager = _Computation(self, other)
    x, y, zero = as_eager.wide(self), as_eager.wide(other), as_eager.number(0)
    if as_eager.given.is_integer():
        return op.Mod(x, y)
    rest = op.Mod(x, y, fmod=1)
    apart = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
    return as_eager.back(op.Where(apart, op.Add(rest, y), rest))


def _log_softmax(self: Any, dim: int, half_to_float: bool = False) -> Any:
    """Write x − log Σ exp x; in float64 without the operator, whose kernel makes numbers of Inf."""
    x = op.Cast(self, to=ir.DataType.FLOAT) if half_to_float else self
    scalar = not len(self.shape)
    if scalar:
        x = op.Unsqueeze(x, [0])
    if self.dtype == ir.DataType.DOUBLE:
        apart = op.Sub(x, op.ReduceMax(x, [dim]))
        y = op.Sub(apart, op.Log(op.ReduceSum(op.Exp(apart), [dim])))
    else:
        y = op.LogSoftmax(x, axis=dim)
    return op.Squeeze(y, [0]) if scalar else y


def keep_dtypes(program: Any) -> None:
    """Give each output eager's dtype: torch computes some operators in float32, and where they come last, stops there."""
    model = program.model
    values = [node for node in program.exported_program.graph.nodes if node.op == "output"][0].args[0]
    kinds = [getattr(getattr(v, "meta", {}).get("val"), "dtype", None) for v in values]
    if len(kinds) != len(model.graph.outputs):
        return
    for i, (output, kind) in enumerate(zip(list(model.graph.outputs), kinds, strict=True)):
        dtype = _DTYPES.get(kind)
        if dtype is None or output.dtype in (None, dtype):
            continue
        cast = ir.node("Cast", [output], {"to": dtype})
        y = cast.outputs[0]
        y.name, y.shape, y.type = output.name, output.shape, ir.TensorType(dtype)
        output.name = f"{output.name}_float32"
        model.graph.append(cast)
        model.graph.outputs[i] = y


_DTYPES = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
