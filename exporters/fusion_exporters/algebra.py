"""Exact algebra across a fusion's border, on request.

A weighted sum of linear layers, Σ a_i (W_i h_i + b_i), becomes the plain sum of layers with the weights a_i W_i and
a_i b_i: k products over the batch are saved, at one more rounding of each weight. A concatenation before a linear
layer, W [x_1 ... x_k] + b, becomes Σ W_i x_i + b over blocks of W's columns, without the concatenated copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fusion_exporters.forms.choice import AUTO, FASTEST
from fusion_exporters.graph import fusion_of
from fusion_onnx.contract import Fusion
from fusion_onnx.file_format import ALGEBRA, DOMAIN
from fusion_onnx.registry import create

_NUMPY_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)  # what numpy has
_SUM, _CONCATENATION, _PROJECTION = "sum", "concatenation", "linear_concatenation"


def rewrite(model: ir.Model) -> list[str]:
    """Rewrite the fusions of a model, before their bodies are attached, where the layers beside them allow it.

    Return why it was not done where a product would lose digits.
    """
    refusals = []
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        fusion = fusion_of(node)
        if fusion.strategy() == _CONCATENATION:
            _fold_into_matrix(model.graph, node, fusion)
        else:
            refusals += _fold_into_layers(model.graph, node, fusion)
    return refusals


@dataclass(frozen=True)
class _Layer:
    """A linear layer in the graph: a Gemm, or a MatMul with an Add or without."""

    end: ir.Node
    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None


def _layer(end: ir.Node | None) -> _Layer | None:
    """Return the layer whose result a node gives, where its weight and bias are constants."""
    if end is None or end.domain != "" or end.op_type not in ("Gemm", "MatMul", "Add"):
        return None
    product, bias = end, None
    if end.op_type == "Add":
        products = [v for v in end.inputs if v is not None and _is_result_of(v, "MatMul") and _only_use(v)]
        others = [v for v in end.inputs if v is not None and v not in products]
        if len(products) != 1 or len(others) != 1:
            return None
        (value,), (bias,) = products, others
        matmul = value.producer()
        assert matmul is not None
        product = matmul
    elif end.op_type == "Gemm" and len(end.inputs) > 2:
        bias = end.inputs[2]
    weight = product.inputs[1]
    if weight is None or not all(
        v is None or (v.is_initializer() and v.dtype in _NUMPY_FLOATS) for v in (weight, bias)
    ):
        return None
    return _Layer(end, product, weight, bias)


def _is_result_of(value: ir.Value, op_type: str) -> bool:
    node = value.producer()
    return node is not None and node.domain == "" and node.op_type == op_type


def _only_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _fold_into_layers(graph: ir.Graph, node: ir.Node, fusion: Fusion) -> list[str]:
    """Multiply the weights of a weighted sum into the layers that feed it, and leave the sum; return what forbids."""
    count = node.attributes["count"].as_int()
    xs, parameters = node.inputs[:count], node.inputs[count:]
    layers = [_layer(x.producer()) if x is not None else None for x in xs]
    if not all(layers) or not all(p is not None and p.is_initializer() for p in parameters):
        return []
    tensors = [torch.from_numpy(_numbers(p).copy()) for p in parameters]
    count_of_buffers = len(fusion.signature.buffers)
    buffers, w = tensors[:count_of_buffers], tensors[count_of_buffers:]
    factors = fusion.coefficients(count, w[0] if w else None, *buffers)
    if factors is None:
        return []
    shared = [str(layer.weight.name) for x, layer in zip(xs, layers, strict=True) if x and layer and not _only_use(x)]
    if shared:
        return [f"not done: the linear layers of {', '.join(dict.fromkeys(shared))} have other users than the fusion"]
    replacements: list[tuple[ir.Node, int, ir.Value, Any]] = []
    for layer, factor in zip(layers, factors.double().tolist(), strict=True):
        assert layer is not None
        places = [(layer.product, 1, layer.weight)]
        if layer.bias is not None:
            places.append((layer.end, list(layer.end.inputs).index(layer.bias), layer.bias))
        for owner, at, value in places:
            product = _scale(value, factor)
            if product is None:
                return [f"not done: {factor:.3g} times {value.name} overflows or is subnormal"]
            replacements.append((owner, at, value, product))
    for owner, at, value, product in replacements:
        owner.replace_input_with(at, _constant(graph, f"{value.name}_folded", product))
        _remove_unread(graph, value)
    old, note = node.outputs[0], "weights multiplied into the linear layers before it"
    _replace(graph, old, _insert_before(graph, node, create(_SUM, dims=fusion.dims), xs, old, note))
    graph.remove(node, safe=True)
    for parameter in parameters:
        assert parameter is not None
        _remove_unread(graph, parameter)
    return []


def _scale(value: ir.Value, factor: float) -> Any:
    """Return factor · value, rounded once; None where that is no relative error: overflow, or a subnormal number."""
    weights = _numbers(value)
    exact = factor * weights.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(weights.dtype)
    kind = np.finfo(weights.dtype)
    safe = np.isfinite(rounded) & ((np.abs(rounded) >= kind.smallest_normal) | (exact == 0))
    return rounded if safe.all() else None


def _fold_into_matrix(graph: ir.Graph, node: ir.Node, fusion: Fusion) -> None:
    """Make a concatenation and the layer after it one fusion, which has a form without the concatenated copy."""
    concatenation = node.outputs[0]
    if fusion.dims is None or not _only_use(concatenation):
        return
    (use,) = concatenation.uses()
    consumer = use.node
    layer = _layer(consumer if consumer.op_type == "Gemm" else _bias_add(consumer))
    if layer is None or layer.product is not consumer or use.idx != 0:
        return
    is_transposed = consumer.op_type == "Gemm" and bool(consumer.attributes.get_int("transB", 0))
    plain = consumer.op_type == "MatMul" or (
        (consumer.attributes.get_float("alpha", 1.0), consumer.attributes.get_float("beta", 1.0)) == (1.0, 1.0)
        and not consumer.attributes.get_int("transA", 0)
    )
    matrix = _numbers(layer.weight)
    if not plain or matrix.ndim != 2:
        return
    matrix = matrix if is_transposed else matrix.T
    projection = create(_PROJECTION, dims=fusion.dims, n=len(matrix))
    w = _constant(graph, f"{layer.weight.name}_blocks", np.ascontiguousarray(matrix).reshape(-1))
    end = layer.end.outputs[0]
    y = _insert_before(graph, node, projection, [*node.inputs, w], end, "one with the linear layer after it", FASTEST)
    if layer.bias is not None:
        add = ir.node("Add", [y, layer.bias], metadata_props=dict(consumer.metadata_props))
        add.outputs[0].type, add.outputs[0].shape = end.type, end.shape
        graph.insert_before(layer.end, add)
        y = add.outputs[0]
    _replace(graph, end, y)
    graph.remove(dict.fromkeys((layer.end, consumer, node)), safe=True)
    _remove_unread(graph, layer.weight)


def _bias_add(product: ir.Node) -> ir.Node:
    """Return the Add of a bias after a product, or the product itself."""
    value = product.outputs[0]
    if not _only_use(value):
        return product
    (use,) = value.uses()
    return use.node if use.node.op_type == "Add" and _layer(use.node) else product


def _insert_before(
    graph: ir.Graph,
    node: ir.Node,
    fusion: Fusion,
    inputs: Sequence[ir.Value | None],
    like: ir.Value,
    note: str,
    form: str = AUTO,
) -> ir.Value:
    """Put another fusion's node before a node; return its result, which has the type and shape of `like`."""
    attributes: dict[str, Any] = {
        "config": fusion.signature.config,
        "torch_op": str(fusion.signature.op),
        "count": node.attributes["count"].as_int(),
        "form": form,
    }
    metadata = {**node.metadata_props, ALGEBRA: note}
    new = ir.node(fusion.strategy(), inputs, attributes, domain=DOMAIN, metadata_props=metadata)
    y = new.outputs[0]
    y.type, y.shape = like.type, like.shape
    graph.insert_before(node, new)
    return y


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let all that reads a value read another, which takes over its name where it is the graph's output."""
    name, output = old.name, old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if output:
        old.name, new.name = f"{name}.before", name


def _constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    unique, number = name, 1
    while unique in graph.initializers:
        number += 1
        unique = f"{name}_{number}"
    value = ir.val(unique, const_value=ir.tensor(array, name=unique))
    graph.register_initializer(value)
    return value


def _remove_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Drop an initializer that nothing reads any more."""
    if value.name and value.name in graph.initializers and not value.uses() and not value.is_graph_output():
        del graph.initializers[value.name]


def _numbers(value: ir.Value | None) -> Any:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()
