"""The exported graph: fusions' functions attached, torch's traces removed, functions inlined on request."""

import ast
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from onnx_ir.passes import common as passes

from fusion_exporters.bodies import digest
from fusion_exporters.errors import ExportError
from fusion_exporters.forms.choice import AUTO, Chooser
from fusion_exporters.graph_inputs import Axes
from fusion_exporters.translation.tracing import SCOPES
from fusion_onnx.contract import Fusion
from fusion_onnx.contract.layer import FusionLayer
from fusion_onnx.contract.torch_op import STRATEGIES, prototype
from fusion_onnx.file_format import ALGEBRA, DOMAIN, text, version
from fusion_onnx.verification.trace import numbered

MIN_BYTES = 1024
"""Of a matrix that is worth a node."""


def fusion_of(node: ir.Node) -> Fusion:
    """Return the fusion, without its tensors, that an opaque node stands for."""
    name = node.attributes["torch_op"].as_string()
    packet = next(packet for packet in STRATEGIES if str(packet) == name)
    fusion: Fusion = prototype(packet, node.attributes["config"].as_string())
    return fusion


def attach_bodies(model: ir.Model, module: torch.nn.Module, choose: Chooser) -> dict[str, Any]:
    """Give every fusion's node its name in the module, and attach the function that says what it computes.

    Returns, for each fusion by its node's name, which form that is and what it costs.
    """
    opset, modules = model.opset_imports[""], dict(module.named_modules())
    states = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    contents: dict[str, bytes] = {}
    classes: dict[str, type[Fusion]] = {}
    counts: dict[str, int] = {}
    forms: dict[str, Any] = {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        config, count = node.attributes["config"].as_string(), node.attributes["count"].as_int()
        fusion = fusion_of(node)
        del node.attributes["torch_op"], node.attributes["count"]
        scope, path = _module_path(node, modules)
        _store_parameters(model.graph, node, count, fusion, (scope, path), states)
        inputs = [_input(v) for v in node.inputs]
        default = node.attributes.pop("form").as_string() if "form" in node.attributes else AUTO
        choice = choose(fusion, path or fusion.strategy(), inputs, count, opset, default)
        body, content = choice.body, choice.content
        if classes.get(body.name) is type(fusion) and contents[body.name] != content:
            body.name += "_" + digest(config)  # something that the name does not tell decides the body
        classes.setdefault(body.name, type(fusion))
        if contents.setdefault(body.name, content) != content:
            raise ExportError(
                f"two different strategies are named {fusion.strategy()!r} and would share the function {body.name}; "
                "rename one of the classes."
            )
        node.op_type = body.name
        model.functions[body.identifier()] = body
        node.name = numbered(path or fusion.strategy(), counts)
        forms[node.name] = choice.facts()
        if ALGEBRA in node.metadata_props:
            forms[node.name]["algebra"] = node.metadata_props[ALGEBRA]  # what algebra.py did to the node
    choose.finish()
    for domain in (DOMAIN, ""):  # one order, however the model was made
        model.opset_imports.pop(domain, None)
    model.opset_imports[""] = opset
    if contents:
        model.opset_imports[DOMAIN] = 1
    return forms


def _input(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _scopes(node: ir.Node) -> list[str]:
    """Return the paths of the modules that torch traced the operator in, outermost first, and the operator's name."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return scopes


def _module_path(node: ir.Node, modules: Mapping[str, torch.nn.Module]) -> tuple[str, str]:
    """Return the path of the fusion's module, and that of its FusionLayer, or else its own; empty for the root."""
    path = next((s for s in reversed(_scopes(node)) if isinstance(modules.get(s), Fusion)), "")
    owner = path.rpartition(".")[0]
    return path, owner if isinstance(modules.get(owner), FusionLayer) and owner != path else path


def _store_parameters(
    graph: ir.Graph, node: ir.Node, count: int, fusion: Fusion, names: tuple[str, str], states: Collection[str]
) -> None:
    """Store a fusion's constant parameters as its node takes them, flat and in its dtype, under the module's names.

    names: the paths of the fusion and of its layer. What others read too, or a subgraph holds, is left as torch has it.
    """
    scope, path = names
    buffers = [f"{scope}.{name}" if scope else name for name in fusion.signature.buffers]
    for i, name in enumerate([*buffers, f"{path}.w" if path else "w"], count):
        value = node.inputs[i] if i < len(node.inputs) else None
        if value is None:
            continue
        value = _fold(graph, value)
        if value.graph is graph and value.is_initializer() and value.name not in states and not _has_value(graph, name):
            del graph.initializers[str(value.name)]
            value.name = name
            graph.initializers[name] = value


def _has_value(graph: ir.Graph, name: str) -> bool:
    """Whether a value of the graph, or of a graph inside it, has the name."""
    return name in graph.initializers or any(
        value.name == name
        for inner in (graph, *graph.subgraphs())
        for value in (*inner.inputs, *inner.initializers.values(), *(v for n in inner for v in n.outputs))
    )


def _fold(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return an initializer for a value that is one, cast or made flat: torch leaves large ones to the runtime."""
    operator = value.producer()
    if operator is None or operator.domain or operator.op_type not in ("Cast", "Reshape"):
        return value
    source, *shape = operator.inputs
    if source is None or source.const_value is None or value.dtype is None or value.is_graph_output():
        return value
    only_here = operator.graph is graph and source.graph is graph and len(source.uses()) == 1
    tensor = getattr(source.const_value, "raw", None)
    flat = [None if v is None or v.const_value is None else v.const_value.numpy().tolist() for v in shape]
    if not only_here or source.is_graph_output() or not isinstance(tensor, torch.Tensor) or flat not in ([], [[-1]]):
        return value
    tensor = tensor.to(tensor_adapters.to_torch_dtype(value.dtype))
    stored_tensor = tensor_adapters.TorchTensor(tensor.reshape(-1) if flat else tensor, name=value.name)
    constant = ir.Value(
        name=value.name, shape=ir.Shape(stored_tensor.shape), type=value.type, const_value=stored_tensor
    )
    value.replace_all_uses_with(constant)
    graph.remove(operator, safe=True)
    for operand in (source, *shape):
        if operand is not None and operand.is_initializer() and not operand.uses() and operand.graph is not None:
            del operand.graph.initializers[str(operand.name)]
    graph.register_initializer(constant)
    return constant


def _same_symbol(names: list[str], axes: list[Axes], inputs: dict[str | None, ir.Value]) -> None:
    """Raise ExportError where two axes with different names came out as one."""
    owner: dict[str, str] = {}
    for name, axis_names in zip(names, axes, strict=True):
        for axis, axis_name in axis_names.items():
            shape = inputs[name].shape
            symbol = "" if shape is None else str(shape[axis])
            if owner.setdefault(symbol, axis_name) != axis_name:
                raise ExportError(
                    f"axes {owner[symbol]!r} and {axis_name!r} came out as one: the module makes them equal. "
                    "Give them one name."
                )


def check_axes(model: ir.Model, names: list[str], axes: list[Axes]) -> None:
    """Raise ExportError where an axis that was to be dynamic came out static, or an input is missing."""
    inputs = {value.name: value for value in model.graph.inputs}
    for name, axis_names in zip(names, axes, strict=True):
        if name not in inputs:
            raise ExportError(f"input {name!r} does not reach the graph; its inputs are {list(inputs)}.")
        shape = inputs[name].shape
        for axis, axis_name in axis_names.items():
            if shape is None or isinstance(shape[axis], int):
                size = None if shape is None else shape[axis]
                raise ExportError(
                    f"axis {axis} of {name} was to be dynamic ({axis_name!r}) and came out as {size}: the module fixes "
                    "it. Take sizes from x.shape inside forward, not from numbers or len(); or leave the axis static."
                )
    _same_symbol(names, axes, inputs)


def _readable(node: ir.Node) -> str:
    """Return the path of the module that the operator came from, and the operator: `left/Gemm`."""
    path = next((scope for scope in reversed(_scopes(node)[:-1]) if scope and not scope.startswith("_")), "")
    return f"{path}/{node.op_type}" if path else node.op_type


def tidy(model: ir.Model) -> None:
    """Remove what tracing left behind: stack traces with paths of the machine, framework names, odd prefixes."""
    model.producer_name, model.producer_version = "fusion-onnx", version()
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.name = "fusion_onnx"
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            node.name = numbered(_readable(node), counts)
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None


def store_once(model: ir.Model) -> None:
    """Store a matrix once that stands in the model as it is and transposed, as torch folds one of two tied layers.

    A runtime folds the Transpose again when it loads the model, so nothing is slower.
    """
    graph, matrices = model.graph, dict[tuple[Any, ...], list[ir.Value]]()
    for value in list(graph.initializers.values()):
        shape, tensor = value.shape, value.const_value
        if tensor is None or shape is None or len(shape) != 2 or tensor.nbytes < MIN_BYTES or value.is_graph_output():
            continue
        rows, columns = (int(size) for size in tensor.shape.numpy())
        array = tensor.numpy()
        for other in matrices.get((tensor.dtype, columns, rows), []):
            assert other.const_value is not None
            if np.array_equal(other.const_value.numpy().T, array):
                # the one with a name of the module's own stays
                original, copy = (other, value) if "." in str(other.name) else (value, other)
                node = ir.node(
                    "Transpose", [original], {"perm": [1, 0]}, num_outputs=1, name=f"transposed {original.name}"
                )
                (output,) = node.outputs
                output.name, output.type, output.shape = f"{original.name}_transposed", copy.type, copy.shape
                copy.replace_all_uses_with(output)
                del graph.initializers[str(copy.name)]
                graph.insert_before(graph[0], node)
                break
        else:
            matrices.setdefault((tensor.dtype, rows, columns), []).append(value)


def inline_bodies(model: ir.Model) -> ir.Model:
    """Return the model with every fusion's body in place of its node, named after it: `merge/matmul_1`."""
    shared = [identifier for identifier, body in model.functions.items() if body.domain == DOMAIN]
    for i, node in enumerate([n for n in model.graph.all_nodes() if n.domain == DOMAIN]):
        body = model.functions[node.op_identifier()].clone()
        body.name = node.op_type = f"{node.op_type}__{i}"  # a body of its own, so that its names can be the node's
        for inner in body:
            if inner.op_type == "Constant":
                inner.attributes["value"].as_tensor().name = None
            inner.name = f"{node.name}/{inner.name}"
            for output in inner.outputs:
                output.name = f"{node.name}/{output.name}"
        model.functions[body.identifier()] = body
    for identifier in shared:
        del model.functions[identifier]
    result = passes.InlinePass()(model).model
    result.opset_imports.pop(DOMAIN, None)
    return result


def describe(model: ir.Model, facts: Mapping[str, Any]) -> None:
    """Write facts into the model's metadata, by the keys of file_format.py; what is not text goes in as JSON."""
    model.metadata_props.update((key, text(fact)) for key, fact in facts.items())


def note(proto: onnx.ModelProto, key: str, fact: Any) -> None:
    """Write one fact into the metadata of a finished model, behind the others."""
    proto.metadata_props.add(key=key, value=text(fact))
