"""The exported graph: fusions' functions attached, torch's traces removed, functions inlined on request."""

import ast
import json
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.values import Op, Opset

import fusion_onnx
from fusion_exporters.bodies import digest
from fusion_exporters.choice import AUTO, NOTE, Chooser
from fusion_exporters.inputs import Axes, ExportError
from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.torch_op import DOMAIN, STRATEGY_OF_OP, stand_in

_FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]


def translations() -> dict[Any, Any]:
    """Return the table that keeps each fusion's torch op as one node of our domain, whatever the optimiser does."""
    return {packet: _translation(packet, cls.strategy()) for packet, cls in STRATEGY_OF_OP.items()}


def _translation(packet: Any, name: str) -> Any:
    formal, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    kinds = onnx.defs.OpSchema.AttrType
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[formal("inputs", "T", param_option=onnx.defs.OpSchema.FormalParameterOption.Variadic)],
        outputs=[formal("y", "T")],
        type_constraints=[("T", _FLOATS, "floating tensors")],
        attributes=[
            attribute("config", kinds.STRING, required=True),
            attribute("torch_op", kinds.STRING, required=True),
            attribute("count", kinds.INT, required=True),
        ],
    )
    node = Op(Opset(DOMAIN, 1), name, schema)

    def translate(xs: Any, params: Any, config: str) -> Any:
        return node(*xs, *params, config=config, torch_op=str(packet), count=len(xs))

    return translate


def fusion_of(node: ir.Node) -> Fusion:
    """Return the fusion, without its tensors, that an opaque node stands for."""
    name = node.attributes["torch_op"].as_string()
    packet = next(packet for packet in STRATEGY_OF_OP if str(packet) == name)
    return stand_in(packet, node.attributes["config"].as_string())


def attach_bodies(model: ir.Model, module: torch.nn.Module, choose: Chooser) -> dict[str, Any]:
    """Give every fusion's node its name in the module, and attach the function that says what it computes.

    Returns, for each fusion by its node's name, which form that is and what it costs.
    """
    opset, modules = model.opset_imports[""], dict(module.named_modules())
    texts: dict[str, str] = {}
    classes: dict[str, type[Fusion]] = {}
    taken: dict[str, int] = {}
    forms: dict[str, Any] = {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        config, count = node.attributes["config"].as_string(), node.attributes["count"].as_int()
        fusion = fusion_of(node)
        del node.attributes["torch_op"], node.attributes["count"]
        path = _module_path(node, modules)
        given = [_given(v) for v in node.inputs]
        usual = node.attributes.pop("form").as_string() if "form" in node.attributes else AUTO
        chosen = choose(fusion, path or fusion.strategy(), given, count, opset, usual)
        body = chosen.body
        text = _text(body)
        if classes.get(body.name) is type(fusion) and texts[body.name] != text:
            body.name += "_" + digest(config)  # something that the name does not tell decides the body
        classes.setdefault(body.name, type(fusion))
        if texts.setdefault(body.name, text) != text:
            raise ExportError(
                f"two different strategies are named {fusion.strategy()!r} and would share the function {body.name}; "
                "rename one of the classes."
            )
        node.op_type = body.name
        model.functions[body.identifier()] = body
        if len(node.inputs) > count + len(fusion._buffer_names):
            _name_parameters(node, path)
        node.name = _numbered(path or fusion.strategy(), taken)
        forms[node.name] = chosen.facts()
        if NOTE in node.metadata_props:
            forms[node.name]["algebra"] = node.metadata_props[NOTE]
    choose.finish()
    model.opset_imports[DOMAIN] = 1
    if not texts:
        del model.opset_imports[DOMAIN]
    return forms


def _text(body: ir.Function) -> str:
    name, body.name = body.name, "body"
    text: str = ir.serde.serialize_function(body).SerializeToString(deterministic=True).hex()
    body.name = name
    return text


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _scopes(node: ir.Node) -> list[str]:
    """Return the paths of the modules that torch traced the operator in, outermost first, and the operator's name."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return scopes


def _module_path(node: ir.Node, modules: Mapping[str, torch.nn.Module]) -> str:
    """Return the path of the fusion's module, of its FusionLayer where it is inside one; empty for a bare fusion."""
    path = next((s for s in reversed(_scopes(node)) if isinstance(modules.get(s), Fusion)), "")
    owner = path.rpartition(".")[0]
    return owner if isinstance(modules.get(owner), FusionLayer) and owner != path else path


def _name_parameters(node: ir.Node, path: str) -> None:
    """Call a folded `w` by the module's name for it instead of the operator that reshaped it."""
    last = node.inputs[-1]
    if last is not None and last.is_initializer() and "." not in (last.name or ""):
        graph = node.graph
        assert graph is not None and last.name is not None
        name = f"{path}.w" if path else "w"
        if name not in graph.initializers:
            del graph.initializers[last.name]
            last.name = name
            graph.initializers[name] = last


def _same_symbol(names: list[str], axes: list[Axes], found: dict[str | None, ir.Value]) -> None:
    """Raise ExportError where two axes with different names came out as one."""
    owner: dict[str, str] = {}
    for name, wanted in zip(names, axes, strict=True):
        for axis, axis_name in wanted.items():
            shape = found[name].shape
            symbol = "" if shape is None else str(shape[axis])
            if owner.setdefault(symbol, axis_name) != axis_name:
                raise ExportError(
                    f"axes {owner[symbol]!r} and {axis_name!r} came out as one: the module makes them equal. "
                    "Give them one name."
                )


def check_axes(model: ir.Model, names: list[str], axes: list[Axes]) -> None:
    """Raise ExportError where an axis that was to be dynamic came out static, or an input is missing."""
    found = {value.name: value for value in model.graph.inputs}
    for name, wanted in zip(names, axes, strict=True):
        if name not in found:
            raise ExportError(f"input {name!r} does not reach the graph; its inputs are {list(found)}.")
        shape = found[name].shape
        for axis, axis_name in wanted.items():
            if shape is None or isinstance(shape[axis], int):
                size = None if shape is None else shape[axis]
                raise ExportError(
                    f"axis {axis} of {name} was to be dynamic ({axis_name!r}) and came out as {size}: the module fixes "
                    "it. Take sizes from x.shape inside forward, not from numbers or len(); or leave the axis static."
                )
    _same_symbol(names, axes, found)


def _readable(node: ir.Node) -> str:
    """Return the path of the module that the operator came from, and the operator: `left/Gemm`."""
    path = next((scope for scope in reversed(_scopes(node)[:-1]) if scope and not scope.startswith("_")), "")
    return f"{path}/{node.op_type}" if path else node.op_type


def _numbered(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


def tidy(model: ir.Model) -> None:
    """Remove what tracing left behind: stack traces with paths of the machine, framework names, odd prefixes."""
    model.producer_name, model.producer_version = "fusion-onnx", fusion_onnx.__version__
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.name = "fusion_onnx"
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            node.name = _numbered(_readable(node), taken)
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None


def inlined(model: ir.Model) -> ir.Model:
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
    """Write facts into the file's metadata, as `fusion_onnx.<key>`; what is not text goes in as JSON."""
    for key, fact in facts.items():
        text = fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True)
        model.metadata_props[f"fusion_onnx.{key}"] = text
