"""Operators whose translation by torch loses what eager execution keeps: digits of small values, NaN, a dtype."""

import contextlib
import math
import types
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.rewriter import _matcher as matcher
from torch.export.graph_signature import OutputKind
from torch.overrides import TorchFunctionMode

from fusion_exporters.translation._computation import Computation, cast, op, places_along

aten = torch.ops.aten
_matcher: Any = matcher


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
        aten.div.Tensor_mode: _divide,
        aten.div.Scalar_mode: _divide,
        aten.floor_divide.default: lambda self, other: _divide(self, other, "floor"),
        aten.softmax.int: _softmax,
        aten.special_softmax.default: _softmax,
        aten.mean.dim: _mean,
        aten.angle.default: _angle,
        aten.erfc.default: _erfc,
        aten.special_erfc.default: _erfc,
        aten.sinc.default: _sinc,
        aten.logcumsumexp.default: _logcumsumexp,
        aten.amax.default: lambda self, dim=(), keepdim=False: _extreme(op.ReduceMax, self, dim, keepdim),
        aten.amin.default: lambda self, dim=(), keepdim=False: _extreme(op.ReduceMin, self, dim, keepdim),
        aten.expm1.default: _expm1,
        aten.celu.default: _celu,
        aten.hardsigmoid.default: _hardsigmoid,
        aten.hardswish.default: _hardswish,
        aten.logit.default: _logit,
        aten.heaviside.default: _heaviside,
        aten.diagonal.default: _diagonal,
        aten.diagonal_copy.default: _diagonal,
    }


@contextlib.contextmanager
def exact_rules() -> Iterator[None]:
    """Keep onnxscript from taking numbers that are near 0 or 1 for these, and leaving out the operator beside them.

    x + 1e-9 is x to its rules, so a division by a norm with an epsilon of 1e-9 divides by 0 where the norm is 0.
    """
    original = _matcher.math
    _matcher.math = types.SimpleNamespace(isclose=lambda x, y, **_: x == y)  # all that it has of math
    try:
        yield
    finally:
        _matcher.math = original


class Bounds(TorchFunctionMode):
    """Gives clamp either floats or integers: torch finds no operator for one of each once the integer is promoted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, clamp with bounds of one kind."""
        kwargs = kwargs or {}
        if func in _CLAMPS:
            bounds = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
            if any(isinstance(bound, float) for bound in bounds):
                args = (*args[:1], *map(_as_float, args[1:]))
                kwargs = {key: _as_float(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


_CLAMPS = {
    function
    for name in ("clamp", "clamp_", "clip", "clip_")
    for function in (
        getattr(torch, name),
        getattr(torch.Tensor, name),
        getattr(aten, name),
        getattr(aten, name).default,
    )
}


def _as_float(bound: Any) -> Any:
    return float(bound) if isinstance(bound, int) else bound


def _log1p(self: Any) -> Any:
    as_eager = Computation(self)
    return as_eager.back(as_eager.log1p(as_eager.wide(self)))


def _log_sigmoid(self: Any) -> Any:
    """Write min(x, 0) − log(1 + exp −|x|)."""
    as_eager = Computation(self)
    x = as_eager.wide(self)
    return as_eager.back(op.Sub(op.Min(x, as_eager.number(0.0)), as_eager.log1p(op.Exp(op.Neg(op.Abs(x))))))


def _softplus(self: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """Write log(1 + exp βx) / β, where βx is not above the threshold."""
    as_eager = Computation(self)
    x, scale = as_eager.wide(self), as_eager.number(beta)
    product = op.Mul(x, scale)
    y = op.Div(as_eager.log1p(op.Exp(product)), scale)
    return as_eager.back(op.Where(op.Greater(product, as_eager.number(threshold)), x, y))


def _logaddexp(self: Any, other: Any) -> Any:
    """Write max(x, y) + log(1 + exp −|x − y|)."""
    as_eager = Computation(self)
    x, y = as_eager.wide(self), as_eager.wide(other)
    return as_eager.back(op.Add(op.Max(x, y), as_eager.log1p(op.Exp(as_eager.gap(x, y)))))


def _logaddexp2(self: Any, other: Any) -> Any:
    as_eager = Computation(self)
    x, y, unit = as_eager.wide(self), as_eager.wide(other), as_eager.number(math.log(2))
    more = as_eager.log1p(op.Exp(op.Mul(as_eager.gap(x, y), unit)))
    return as_eager.back(op.Add(op.Max(x, y), op.Div(more, unit)))


def _atan2(self: Any, other: Any) -> Any:
    """Write the angle from the shorter over the longer side, which no quadrant, zero, infinity or NaN disturbs."""
    as_eager = Computation(self)
    y, x = as_eager.wide(self), as_eager.wide(other)
    zero, one, infinity = map(as_eager.number, (0.0, 1.0, math.inf))
    a, b = op.Abs(y), op.Abs(x)
    shorter, longer = op.Min(a, b), op.Max(a, b)
    slope = op.Where(op.Equal(longer, zero), zero, op.Div(shorter, longer))
    angle = op.Atan(op.Where(op.Equal(shorter, infinity), one, slope))
    angle = op.Where(op.Greater(a, b), op.Sub(as_eager.number(math.pi / 2), angle), angle)
    angle = op.Where(as_eager.negative(x), op.Sub(as_eager.number(math.pi), angle), angle)
    return as_eager.back(op.Where(as_eager.negative(y), op.Neg(angle), angle))


def _logcumsumexp(self: Any, dim: int) -> Any:
    """Write mᵢ + log Σ exp(xⱼ − mᵢ) over j ≤ i, mᵢ the largest of these: what is far below one for all is lost."""
    if not len(self.shape):
        return op.Identity(self)
    as_eager = Computation(self)
    axes = list(range(len(self.shape)))
    axes[dim], axes[-1] = axes[-1], axes[dim]
    x = op.Transpose(as_eager.wide(self), perm=axes)
    places = places_along(x)
    mask = op.LessOrEqual(places, op.Unsqueeze(places, [1]))
    x = op.Where(mask, op.Unsqueeze(x, [-2]), as_eager.number(-math.inf))
    largest = op.ReduceMax(x, [-1])
    infinite = op.Equal(op.Abs(largest), as_eager.number(math.inf))
    largest = op.Where(infinite, as_eager.number(0.0), largest)
    sums = op.Log(op.ReduceSum(op.Exp(op.Sub(x, largest)), [-1], keepdims=False))
    return as_eager.back(op.Transpose(op.Add(sums, op.Squeeze(largest, [-1])), perm=axes))


def _extreme(reduce: Any, x: Any, dim: Any, keepdim: bool) -> Any:
    """Write the largest or the least over axes, by default all."""
    if not len(x.shape):
        return op.Identity(x)
    axes = [dim] if isinstance(dim, int) else list(dim)
    return reduce(x, axes, keepdims=keepdim) if axes else reduce(x, keepdims=keepdim)


_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)
"""Of log(erfc(x) exp(x²) / t) as a polynomial in t = 2 / (2 + x), relative error 1.2e-7: W. H. Press and others."""


def _erfc(self: Any) -> Any:
    """Write 1 − erf x, and above ½, where that cancels, an approximation with all of a float32's digits."""
    as_eager = Computation(self)
    x = as_eager.wide(self)
    plain = op.Sub(as_eager.number(1.0), op.Erf(x))
    if as_eager.dtype == ir.DataType.DOUBLE:
        return plain
    t = op.Div(as_eager.number(2.0), op.Add(op.Abs(x), as_eager.number(2.0)))
    sums = as_eager.number(_ERFC[-1])
    for number in _ERFC[-2::-1]:
        sums = op.Add(op.Mul(sums, t), as_eager.number(number))
    large = op.Mul(t, op.Mul(op.Exp(op.Neg(op.Mul(x, x))), op.Exp(sums)))
    return as_eager.back(op.Where(op.Greater(x, as_eager.number(0.5)), large, plain))


def _sinc(self: Any) -> Any:
    """Write sin(πx) / πx, of 0 one."""
    as_eager = Computation(self)
    x = op.Mul(as_eager.wide(self), as_eager.number(math.pi))
    return as_eager.back(op.Where(op.Equal(x, as_eager.number(0.0)), as_eager.number(1.0), op.Div(op.Sin(x), x)))


def _angle(self: Any) -> Any:
    """Write π for what is below 0, else 0; NaN stays NaN."""
    if self.dtype.is_integer() or self.dtype == ir.DataType.BOOL:
        self = op.Cast(self, to=ir.DataType.FLOAT)
    as_eager = Computation(self)
    x = as_eager.wide(self)
    side = op.Where(op.Less(x, as_eager.number(0.0)), as_eager.number(math.pi), as_eager.number(0.0))
    return as_eager.back(op.Where(op.Equal(x, x), side, x))


def _remainder(self: Any, other: Any) -> Any:
    """Write x − ⌊x / y⌋ y by the rest of the division, which is exact; the quotient's own rounding is not."""
    as_eager = Computation(self, other)
    x, y, zero = as_eager.wide(self), as_eager.wide(other), as_eager.number(0)
    if as_eager.storage.is_integer():
        return op.Mod(x, y)
    remainder = op.Mod(x, y, fmod=1)
    signs_differ = op.And(op.Not(op.Equal(remainder, zero)), op.Xor(op.Less(remainder, zero), op.Less(y, zero)))
    return as_eager.back(op.Where(signs_differ, op.Add(remainder, y), remainder))


def _divide(self: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """Write a quotient that is rounded down, by the rest of the division, or towards 0; of integers, in integers."""
    as_eager = Computation(self, other)
    x, y = as_eager.wide(self), as_eager.wide(other)
    if as_eager.storage.is_integer() and rounding_mode is not None:
        quotient = op.Div(x, y)  # towards 0
        if rounding_mode == "trunc" or not as_eager.storage.is_signed():
            return quotient
        zero = as_eager.number(0)
        remainder = op.Sub(x, op.Mul(quotient, y))
        below = op.And(op.Not(op.Equal(remainder, zero)), op.Xor(op.Less(remainder, zero), op.Less(y, zero)))
        return op.Sub(quotient, op.Cast(below, to=as_eager.storage))
    if as_eager.storage.is_integer():
        return op.Div(op.Cast(x, to=ir.DataType.FLOAT), op.Cast(y, to=ir.DataType.FLOAT))
    quotient, zero = op.Div(x, y), as_eager.number(0.0)
    if rounding_mode == "trunc":
        quotient = op.Where(op.Less(quotient, zero), op.Ceil(quotient), op.Floor(quotient))
    elif rounding_mode == "floor":
        remainder = op.Mod(x, y, fmod=1)
        ratio = op.Div(op.Sub(x, remainder), y)
        below = op.And(op.Not(op.Equal(remainder, zero)), op.Xor(op.Less(remainder, zero), op.Less(y, zero)))
        ratio = op.Where(below, op.Sub(ratio, as_eager.number(1.0)), ratio)
        down = op.Floor(ratio)
        down = op.Where(op.Greater(op.Sub(ratio, down), as_eager.number(0.5)), op.Add(down, as_eager.number(1.0)), down)
        quotient = op.Where(op.Equal(y, zero), quotient, down)
    return as_eager.back(quotient)


def _softmax(self: Any, dim: int, dtype: Any = None) -> Any:
    x = cast(self, dtype)
    if len(self.shape):
        return op.Softmax(x, axis=dim)
    return op.Squeeze(op.Softmax(op.Unsqueeze(x, [0]), axis=0), [0])


def _mean(self: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """Write the mean over axes; of an empty one, NaN."""
    x = cast(self, dtype)
    axes = [dim] if isinstance(dim, int) else list(dim or range(len(self.shape)))
    if not len(self.shape):
        return op.Identity(x)
    if 0 in (self.shape[axis] for axis in axes):  # ONNX Runtime gives 0
        zero = op.ReduceSum(x, axes, keepdims=keepdim)
        return op.Div(zero, zero)
    return op.ReduceMean(x, axes, keepdims=keepdim)


def _expm1(self: Any) -> Any:
    as_eager = Computation(self)
    return as_eager.back(as_eager.expm1(as_eager.wide(self)))


def _celu(self: Any, alpha: float = 1.0) -> Any:
    """Write x where it is above 0, else α (exp(x / α) − 1)."""
    as_eager = Computation(self)
    x, scale = as_eager.wide(self), as_eager.number(alpha)
    below = op.Mul(as_eager.expm1(op.Div(x, scale)), scale)
    return as_eager.back(op.Where(op.Greater(x, as_eager.number(0.0)), x, below))


def _hardsigmoid(self: Any) -> Any:
    """Write min(max(x + 3, 0), 6) / 6; the operator's 1 / 6 is a float32, times x."""
    as_eager = Computation(self)
    x = op.Add(as_eager.wide(self), as_eager.number(3.0))
    return as_eager.back(op.Div(as_eager.clip(x, 0.0, 6.0), as_eager.number(6.0)))


def _hardswish(self: Any) -> Any:
    """Write x min(max(x + 3, 0), 6) / 6."""
    as_eager = Computation(self)
    x = as_eager.wide(self)
    gate = as_eager.clip(op.Add(x, as_eager.number(3.0)), 0.0, 6.0)
    return as_eager.back(op.Div(op.Mul(x, gate), as_eager.number(6.0)))


def _logit(self: Any, eps: float | None = None) -> Any:
    """Write log(x / (1 − x)), x between ε and 1 − ε if there is one."""
    as_eager = Computation(self)
    x = as_eager.wide(self)
    if eps is not None:
        x = as_eager.clip(x, eps, 1 - eps)
    return as_eager.back(op.Log(op.Div(x, op.Sub(as_eager.number(1.0), x))))


def _heaviside(self: Any, values: Any) -> Any:
    """Write 1 for what is above 0, the values for 0, else 0, for NaN too."""
    zero = op.CastLike(op.Constant(value_float=0.0), self)
    return op.Where(op.Equal(self, zero), values, op.CastLike(op.Greater(self, zero), self))


def _diagonal(self: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Take the diagonal's entries by their place; a sum of the rest times 0 makes NaN of what is not finite."""
    rank = len(self.shape)
    pair = (dim1 % rank, dim2 % rank)
    batch = [axis for axis in range(rank) if axis not in pair]
    x = op.Transpose(self, perm=[*batch, *pair])
    zero, one = (op.Constant(value_ints=[number]) for number in (0, 1))
    rows, columns = op.Shape(x, start=-2, end=-1), op.Shape(x, start=-1)
    down, right = (op.Constant(value_ints=[max(number, 0)]) for number in (-offset, offset))
    count = op.Max(op.Min(op.Sub(rows, down), op.Sub(columns, right)), zero)
    steps = op.Range(op.Squeeze(zero), op.Squeeze(count), op.Squeeze(one))
    places = op.Add(op.Mul(op.Add(steps, down), columns), op.Add(steps, right))
    flat = op.Reshape(x, op.Concat(op.Shape(x, end=-2), op.Mul(rows, columns), axis=0), allowzero=1)
    return op.Gather(flat, places, axis=-1)


def keep_constants(model: ir.Model) -> None:
    """Enter constants that nodes have and the graph does not: onnxscript makes Clip's bounds of the same names."""
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is None or value.producer() is not None or value.const_value is None or node.graph is None:
                continue
            if value.graph is None or value not in value.graph.initializers.values():
                value.name = f"{node.name}_{value.name}" if value.name in model.graph.initializers else value.name
                model.graph.register_initializer(value)


def keep_infinities(model: ir.Model) -> None:
    """Write what bounds numbers on one side as Max or Min: Clip's other bound is the largest finite number."""
    for node in list(model.graph.all_nodes()):
        x, least, most = (*node.inputs, None, None, None)[:3]
        if node.op_type != "Clip" or node.domain or x is None or (least is None) == (most is None):
            continue
        if x.dtype is None or not x.dtype.is_floating_point():
            continue
        new = ir.node("Max" if most is None else "Min", [x, least if most is None else most])
        new.metadata_props.update(node.metadata_props)
        old, y = node.outputs[0], new.outputs[0]
        y.name, y.shape, y.type = old.name, old.shape, old.type
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], [old], [y])


def keep_dtypes(program: Any) -> None:
    """Give each output eager's dtype: what torch computes in float32 stays so where the operator comes last."""
    exported_program, model = program.exported_program, program.model
    values = next(node for node in exported_program.graph.nodes if node.op == "output").args[0]
    specs = exported_program.graph_signature.output_specs
    metas = [
        v.meta.get("val")
        for v, s in zip(values, specs, strict=True)
        if s.kind is OutputKind.USER_OUTPUT and hasattr(v, "meta")
    ]
    if len(metas) != len(model.graph.outputs):
        return
    for i, (output, meta) in enumerate(zip(list(model.graph.outputs), metas, strict=True)):
        dtype = _DTYPES.get(getattr(meta, "dtype", None))
        if dtype is None or output.dtype in (None, dtype):
            continue
        cast = ir.node("Cast", [output], {"to": dtype})
        y = cast.outputs[0]
        y.name, y.shape, y.type = output.name, output.shape, ir.TensorType(dtype)
        output.name = f"{output.name}_float32"
        model.graph.append(cast)
        model.graph.outputs[i] = y


_DTYPES: dict[Any, ir.DataType] = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
