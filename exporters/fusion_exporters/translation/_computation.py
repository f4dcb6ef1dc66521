"""What translations share: the type that eager execution computes in, and what keeps the digits of small numbers."""

from typing import Any

import onnx_ir as ir
from onnxscript import opset18

op: Any = opset18  # its types are of tensors; here it takes what torch.onnx.export traces


class Computation:
    """What eager execution computes with where it is given x: float32 for what is shorter, else x's own dtype."""

    def __init__(self, *xs: Any) -> None:
        self.storage = next(dtype for dtype in (getattr(x, "dtype", None) for x in xs) if dtype is not None)
        self.short = self.storage in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        self.dtype = ir.DataType.FLOAT if self.short else self.storage

    def number(self, number: float) -> Any:
        """Write a number of the type that is computed in."""
        return op.Constant(value=ir.tensor(number, dtype=self.dtype))

    def wide(self, x: Any) -> Any:
        """Write x, or a number, in the type that is computed in."""
        if not isinstance(x, ir.Value):
            return self.number(x)
        return op.Cast(x, to=self.dtype) if self.short else x

    def back(self, y: Any) -> Any:
        """Write a result in x's own type."""
        return op.Cast(y, to=self.storage) if self.short else y

    def log1p(self, x: Any) -> Any:
        """Write log(1 + x) with all digits of a small x: what 1 + x loses of x is put back as a factor."""
        u = op.Add(x, self.number(1.0))
        part = op.Sub(u, self.number(1.0))
        log = op.Log(u)
        small = op.Where(op.Equal(part, self.number(0.0)), x, op.Mul(x, op.Div(log, part)))
        return op.Where(op.Equal(part, x), log, small)

    def expm1(self, x: Any) -> Any:
        """Write (exp x) − 1 with all digits of a small x, in the same way."""
        u = op.Exp(x)
        difference = op.Sub(u, self.number(1.0))
        small = op.Where(op.Equal(difference, self.number(0.0)), x, op.Mul(difference, op.Div(x, op.Log(u))))
        return op.Where(op.Less(op.Abs(x), self.number(1.0)), small, difference)

    def clip(self, x: Any, least: float, most: float) -> Any:
        return op.Min(op.Max(x, self.number(least)), self.number(most))

    def negative(self, x: Any) -> Any:
        """Return whether a number has a minus; a zero may have one too."""
        zero = self.number(0.0)
        return op.Or(op.Less(x, zero), op.Less(op.Div(self.number(1.0), x), zero))

    def gap(self, x: Any, y: Any) -> Any:
        """Return −|x − y|; of what is equal, two infinities too, 0."""
        return op.Where(op.Equal(x, y), self.number(0.0), op.Neg(op.Abs(op.Sub(x, y))))


def cast(x: Any, dtype: Any) -> Any:
    """Return x in the dtype in which the result is asked for: eager casts first, and torch's translations last."""
    return x if dtype in (None, -1, x.dtype) else op.Cast(x, to=dtype)


def places_along(x: Any) -> Any:
    """Write 0, 1, ... along the last axis of x."""
    zero, one = (op.Constant(value_int=number) for number in (0, 1))
    return op.Range(zero, op.Squeeze(op.Shape(x, start=-1)), one)
