"""Numbers in float64 with all their digits: attributes of ONNX operators are float32, and so are torch's scalars.

What the digits change is written in operators that take the number as a float64 tensor.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape
from onnxscript import opset18
from torch.utils import _pytree as pytree

op: Any = opset18


def translations() -> dict[Any, Any]:
    """Return the table that torch.onnx.export takes: a number beside a tensor in the tensor's own dtype."""
    aten = torch.ops.aten
    return {
        aten.scalar_tensor.default: _scalar,
        aten.full.default: _full,
        aten.full_like.default: _full_like,
        aten.new_full.default: _new_full,
    }


def _full(size: Any, fill_value: Any, dtype: int = -1, **_: Any) -> Any:
    from onnxscript.function_libs.torch_lib.ops import core

    if isinstance(fill_value, float) and dtype == ir.DataType.DOUBLE:
        fill_value, dtype = op.Constant(value=ir.tensor(fill_value, dtype=ir.DataType.DOUBLE)), -1
    return core.aten_full(size, fill_value, dtype)


def _full_like(self: Any, fill_value: Any, dtype: int = -1, **_: Any) -> Any:
    return _full(op.Shape(self), fill_value, self.dtype if dtype in (-1, None) else dtype)


def _new_full(self: Any, size: Any, fill_value: Any, dtype: int = -1, **_: Any) -> Any:
    return _full(size, fill_value, self.dtype if dtype in (-1, None) else dtype)


def _scalar(s: Any, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    if isinstance(s, (bool, int, float)) and dtype == ir.DataType.DOUBLE:
        return op.Constant(value=ir.tensor(s, dtype=ir.DataType.DOUBLE))
    from onnxscript.function_libs.torch_lib.ops import core  # which takes long to import

    return core.aten_scalar_tensor(s, dtype)


def keep_scalars(program: Any) -> None:
    """Put the digits back into float64 constants that torch's translations made as float32.

    A constant that is the float32 of a number among the operators' arguments is that number, unless it is a tensor of
    the module's own, or one of float32 that was cast.
    """
    candidates: dict[float, set[float]] = {}
    for number in (*_scalars(program.exported_program.graph_module), *_LITERALS):
        float32 = float(np.float32(number))
        if float32 != number and math.isfinite(float32):
            candidates.setdefault(float32, set()).add(number)
    digits = {float32: numbers.pop() for float32, numbers in candidates.items() if len(numbers) == 1}
    if not digits:
        return
    module_tensors = {**program.exported_program.state_dict, **program.exported_program.constants}
    short = [t.detach().numpy() for t in module_tensors.values() if _is_short(t)]
    model = program.model
    values = [value for name, value in model.graph.initializers.items() if name not in module_tensors]
    values += [node.outputs[0] for node in model.graph.all_nodes() if node.op_type == "Constant" and not node.domain]
    for value in values:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.DOUBLE or tensor.size > _MAX_ENTRIES:
            continue
        array = tensor.numpy()
        if any(_holds(tensor, array) for tensor in short):
            continue
        exact = np.vectorize(lambda x: digits.get(float(x), x), otypes=[np.float64])(array) if array.size else array
        if (exact == array).all():
            continue
        node = value.producer()
        if node is None:
            value.const_value = ir.tensor(exact, name=value.name)
        else:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(exact))
            value.const_value = node.attributes["value"].as_tensor()


def _is_short(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and tensor.numel() <= _MAX_ENTRIES


def _holds(tensor: Any, array: Any) -> bool:
    """Return whether a tensor has the same numbers, in any order and, if these are several, in any shape."""
    if tensor.size != array.size or (array.size == 1 and tensor.shape != array.shape):
        return False
    return bool((np.sort(tensor, None) == np.sort(array, None)).all())


_MAX_ENTRIES = 4096
_LITERALS = (math.pi / 180, 180 / math.pi, math.log(10), math.log(2))
"""What torch's translations of deg2rad, rad2deg, log10 and log2 have in them."""


def _scalars(module: torch.fx.GraphModule) -> Iterator[float]:
    """Return the numbers that operators have as arguments, or by default."""
    graphs = [part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        defaults = [a.default_value for a in node.target._schema.arguments] if hasattr(node.target, "_schema") else []
        leaves = pytree.tree_leaves((node.args, dict(node.kwargs), defaults))
        yield from (float(x) for x in leaves if isinstance(x, float) and math.isfinite(x))


def keep_digits(model: ir.Model) -> None:
    """Write nodes over float64 anew whose numbers a float32 does not hold."""
    for node in list(model.graph.all_nodes()):
        x = node.inputs[0] if node.inputs else None
        if node.domain or x is None or x.dtype != ir.DataType.DOUBLE or node.op_type not in _FORMS:
            continue
        make = _Writing()
        y = _FORMS[node.op_type](make, node, x)
        if y is None:
            continue
        for new in make.nodes:
            new.metadata_props.update(node.metadata_props)
        old = node.outputs[0]
        y.name, y.shape, y.type = old.name, old.shape, old.type
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], make.nodes, [old], [y])


class _Writing(tape.Tape):
    """Nodes that are written as calls: `make.Mul(x, y)`."""

    def __getattr__(self, name: str) -> Callable[..., ir.Value]:
        return lambda *inputs, **attributes: self.op(name, inputs, attributes)


def _number(node: ir.Node, name: str, default: float) -> float | None:
    """Return an attribute's number where a float32 does not hold it."""
    number = node.attributes.get_float(name, default)
    return None if number is None or float(np.float32(number)) == number else float(number)


def _double(make: Any, number: Any) -> Any:
    return make.Constant(value=ir.tensor(np.asarray(number, dtype=np.float64)))


def _axes(make: Any, axes: list[int]) -> Any:
    return make.Constant(value_ints=axes)


def _normalize(make: Any, x: Any, variance: Any, epsilon: float) -> Any:
    # times a reciprocal: ONNX Runtime takes a quotient for its own operator again, with epsilon as an attribute
    return make.Mul(x, make.Reciprocal(make.Sqrt(make.Add(variance, _double(make, epsilon)))))


def _layer_normalization(make: Any, node: ir.Node, x: ir.Value) -> Any:
    epsilon = _number(node, "epsilon", 1e-5)
    if epsilon is None or x.shape is None or any(output.uses() for output in node.outputs[1:]):
        return None
    axes = list(range(node.attributes.get_int("axis", -1) % len(x.shape), len(x.shape)))
    deviation = make.Sub(x, make.ReduceMean(x, _axes(make, axes)))
    y = _normalize(make, deviation, make.ReduceMean(make.Mul(deviation, deviation), _axes(make, axes)), epsilon)
    _, scale, bias = (*node.inputs, None)[:3]
    y = make.Mul(y, scale)
    return y if bias is None else make.Add(y, bias)


def _batch_normalization(make: Any, node: ir.Node, x: ir.Value) -> Any:
    epsilon = _number(node, "epsilon", 1e-5)
    if epsilon is None or x.shape is None or node.attributes.get_int("training_mode", False):
        return None
    spatial_axes = list(range(1, len(x.shape) - 1))
    scale, bias, mean, variance = (
        make.Unsqueeze(v, _axes(make, spatial_axes)) if spatial_axes else v for v in node.inputs[1:]
    )
    return make.Add(make.Mul(_normalize(make, make.Sub(x, mean), variance, epsilon), scale), bias)


def _gemm(make: Any, node: ir.Node, x: ir.Value) -> Any:
    """Write αAB + βC as products; with α and β that a float32 holds, the operator is right."""
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if _number(node, "alpha", 1.0) is None and _number(node, "beta", 1.0) is None:
        return None
    _, other, bias = (*node.inputs, None)[:3]
    if node.attributes.get_int("transA", 0) or node.attributes.get_int("transB", 0):
        return None
    columns = other.shape[-1] if other is not None and other.shape else None
    if not isinstance(columns, int):
        return None
    # a number for each column: see _scalar_product
    y = make.Mul(make.MatMul(x, other), _double(make, np.full(columns, alpha)))
    return y if bias is None else make.Add(y, make.Mul(bias, _double(make, beta)))


def _instance_normalization(make: Any, node: ir.Node, x: ir.Value) -> Any:
    epsilon = _number(node, "epsilon", 1e-5)
    if epsilon is None or x.shape is None:
        return None
    spatial_axes = list(range(2, len(x.shape)))
    deviation = make.Sub(x, make.ReduceMean(x, _axes(make, spatial_axes)))
    y = _normalize(make, deviation, make.ReduceMean(make.Mul(deviation, deviation), _axes(make, spatial_axes)), epsilon)
    scale, bias = (make.Unsqueeze(v, _axes(make, [0, *spatial_axes])) for v in node.inputs[1:])
    return make.Add(make.Mul(y, scale), bias)


def _selu(make: Any, node: ir.Node, x: ir.Value) -> Any:
    above, below = _double(make, _SELU), make.Mul(make.Elu(x), _double(make, _SELU * _SELU_ALPHA))
    return make.Where(make.Greater(x, _double(make, 0.0)), make.Mul(x, above), below)


_SELU, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _leaky_relu(make: Any, node: ir.Node, x: ir.Value) -> Any:
    alpha = _number(node, "alpha", 0.01)
    if alpha is None:
        return None
    return make.Where(make.Greater(x, _double(make, 0.0)), x, make.Mul(x, _double(make, alpha)))


def _elu(make: Any, node: ir.Node, x: ir.Value) -> Any:
    alpha = _number(node, "alpha", 1.0)
    if alpha is None:
        return None
    return make.Where(make.Greater(x, _double(make, 0.0)), x, make.Mul(make.Elu(x), _double(make, alpha)))


def _scalar_product(make: Any, node: ir.Node, x: ir.Value) -> Any:
    """Keep ONNX Runtime from merging a scalar into the product beside it, as a float32: it leaves a row of it alone."""
    number = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    columns = x.shape[-1] if x.shape else None
    if number is None or len(number.shape) or not isinstance(columns, int) or columns < 2:
        return None
    beside = [x.producer(), *(use.node for use in node.outputs[0].uses())]
    scalar = float(number.numpy())
    if float(np.float32(scalar)) == scalar or not {n.op_type for n in beside if n} & {"MatMul", "Transpose"}:
        return None
    return getattr(make, node.op_type)(x, _double(make, np.full(columns, scalar)))


_FORMS: dict[str, Callable[[Any, ir.Node, ir.Value], Any]] = {
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_normalization,
    "LeakyRelu": _leaky_relu,
    "Selu": _selu,
    "Elu": _elu,
    "Mul": _scalar_product,
    "Div": _scalar_product,
}
