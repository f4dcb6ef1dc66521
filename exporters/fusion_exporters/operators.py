"""Operators whose usual translation loses what eager execution keeps: digits near 0, NaN, the signs of zeros.

ONNX has neither log1p nor expm1, and log(1 + x) keeps of a small x what 1 + x keeps. What 1 + x lost is known, so the
logarithm can be corrected by it: log1p(x) = x log(u) / (u − 1) with u = 1 + x rounded, and likewise for expm1
(W. Kahan, in HP-15C Advanced Functions Handbook, 1982).
"""

import math
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18  # its types are of tensors; here it takes what torch.onnx.export traces
_WIDE = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def translations() -> dict[Any, Any]:
    """Return the table that torch.onnx.export takes: these operators as this file writes them."""
    aten = torch.ops.aten
    return {
        aten.log1p.default: _in_float32(_log1p),
        aten.expm1.default: _in_float32(_expm1),
        aten.log_sigmoid.default: _in_float32(_log_sigmoid),
        aten.softplus.default: _in_float32(_softplus),
        aten.atan2.default: _atan2,
        aten.angle.default: _angle,
        aten.heaviside.default: _heaviside,
        aten.diagonal.default: _diagonal,
        aten.diagonal_copy.default: _diagonal,
        aten.softmax.int: _softmax,
        aten.log_softmax.int: _log_softmax,
    }


def _in_float32(write: Any) -> Any:
    """Write an operator for float16 and bfloat16 in float32, as eager execution computes it."""

    def translate(self: Any, *options: Any) -> Any:
        if self.dtype not in _WIDE:
            return write(self, *options)
        return op.Cast(write(_typed(op.Cast(self, to=ir.DataType.FLOAT), ir.DataType.FLOAT), *options), to=self.dtype)

    return translate


def _typed(value: Any, dtype: ir.DataType) -> Any:
    value.dtype = dtype
    return value


def _number(number: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(number, dtype=like.dtype))


def _log1p(x: Any) -> Any:
    one = _number(1.0, x)
    u = op.Add(x, one)
    gained = op.Sub(u, one)
    # where all of x was lost, log1p(x) = x to the last digit; where u is infinite there is nothing to correct
    exact = op.Or(op.Equal(gained, x), op.Equal(u, _number(math.inf, x)))
    corrected = op.Mul(op.Log(u), op.Div(x, gained))
    return op.Where(exact, op.Log(u), op.Where(op.Equal(gained, _number(0.0, x)), x, corrected))


def _expm1(x: Any) -> Any:
    one = _number(1.0, x)
    u = op.Exp(x)
    less = op.Sub(u, one)
    corrected = op.Mul(less, op.Div(x, op.Log(u)))
    # beyond these nothing is lost, and log(u) is 0 or infinite
    plain = op.Or(op.Less(less, _number(-0.5, x)), op.Greater(less, one))
    return op.Where(op.Equal(less, _number(0.0, x)), x, op.Where(plain, less, corrected))


def _log_sigmoid(x: Any) -> Any:
    """Write min(x, 0) − log1p(exp(−|x|))."""
    tail = _log1p(_typed(op.Exp(op.Neg(op.Abs(x))), x.dtype))
    return op.Sub(op.Min(x, _number(0.0, x)), tail)


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """Write log1p(exp(β x)) / β, and x where β x is above the threshold."""
    scaled = x if beta == 1 else _typed(op.Mul(x, _number(beta, x)), x.dtype)
    y = _log1p(_typed(op.Exp(scaled), x.dtype))
    return op.Where(op.Greater(scaled, _number(threshold, x)), x, y if beta == 1 else op.Div(y, _number(beta, x)))


def _atan2(self: Any, other: Any) -> Any:
    """Write the angle of (other, self) by its octant: NaN and the signs of zeros and infinities are eager's."""
    y, x = self, other
    if y.dtype in _WIDE:
        wide = (_typed(op.Cast(v, to=ir.DataType.FLOAT), ir.DataType.FLOAT) for v in (y, x))
        return op.Cast(_atan2(*wide), to=self.dtype)
    zero, half, whole = (_number(v, y) for v in (0.0, math.pi / 2, math.pi))
    infinity = _number(math.inf, y)
    high, wide_x = op.Abs(y), op.Abs(x)
    steep = op.Greater(high, wide_x)
    shorter, longer = op.Where(steep, wide_x, high), op.Where(steep, high, wide_x)
    both_infinite = op.Equal(shorter, infinity)
    ratio = op.Where(op.Equal(longer, zero), longer, op.Div(shorter, longer))
    angle = op.Atan(op.Where(both_infinite, _number(1.0, y), ratio))
    angle = op.Where(steep, op.Sub(half, angle), angle)
    angle = op.Where(_is_negative(x), op.Sub(whole, angle), angle)
    angle = op.Where(_is_negative(y), op.Neg(angle), angle)
    both = op.Add(y, x)  # NaN where one is; of opposite infinities, too
    lost = op.Or(op.IsNaN(y), op.IsNaN(x))
    return op.Where(lost, both, angle)


def _is_negative(x: Any) -> Any:
    """Write whether the sign is set: the reciprocal of −0 is −∞."""
    zero = _number(0.0, x)
    return op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))


def _angle(self: Any) -> Any:
    """Write π where x < 0, 0 elsewhere, NaN where x is."""
    zero = _number(0.0, self)
    return op.Where(op.IsNaN(self), self, op.Where(op.Less(self, zero), _number(math.pi, self), zero))


def _heaviside(self: Any, values: Any) -> Any:
    """Write the step: 1 where x > 0, `values` where x = 0, else 0, NaN too."""
    zero = _number(0.0, self)
    return op.Where(op.Equal(self, zero), values, op.Where(op.Greater(self, zero), _number(1.0, self), zero))


def _diagonal(self: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Write the entries (i, i + offset) by their places; a product with 0 and 1 would spread NaN."""
    rank = len(self.shape)
    first, second = dim1 % rank, dim2 % rank
    rows, columns = self.shape[first], self.shape[second]
    if not isinstance(rows, int) or not isinstance(columns, int):
        from onnxscript.function_libs.torch_lib.ops import core  # which takes long to import

        return core.aten_diagonal(self, offset, dim1, dim2)
    others = [axis for axis in range(rank) if axis not in (first, second)]
    top, left = max(-offset, 0), max(offset, 0)
    length = max(min(rows - top, columns - left), 0)
    places = [(top + i) * columns + left + i for i in range(length)]
    flat = op.Reshape(
        op.Transpose(self, perm=[*others, first, second]), op.Constant(value_ints=[0] * len(others) + [rows * columns])
    )
    return op.Gather(flat, op.Constant(value=ir.tensor(places, dtype=ir.DataType.INT64)), axis=len(others))


def _softmax(self: Any, dim: int, dtype: int = -1) -> Any:
    """Write the softmax in the dtype that is asked for: cast before it, not after."""
    return op.Softmax(_wider(self, dtype), axis=dim)


def _log_softmax(self: Any, dim: int, dtype: int = -1) -> Any:
    return op.LogSoftmax(_wider(self, dtype), axis=dim)


def _wider(x: Any, dtype: int) -> Any:
    return x if dtype in (-1, None) or dtype == x.dtype else op.Cast(x, to=dtype)
