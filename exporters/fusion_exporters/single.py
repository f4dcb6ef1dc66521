"""A fusion by itself: its graph is one node that is known beforehand, so it is written, and nothing is traced.

What the module does is observed while it runs once on the example. Where that is one call of a fusion's torch op on the
inputs as they are, and nothing else, the graph follows from the call; where it is anything more, torch traces it. One
run shows one branch, so a class that is not this package's own has to show by torch.export, too, that it has no other.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fusion_exporters.graph_inputs import GraphInputs
from fusion_exporters.translation.tracing import SCOPES, Flat, limits, quiet
from fusion_onnx import fusions
from fusion_onnx.contract import Fusion
from fusion_onnx.contract.layer import FusionLayer, Isolated, bare_fusion
from fusion_onnx.contract.torch_op import STRATEGIES, prototype
from fusion_onnx.file_format import DOMAIN
from fusion_onnx.verification.arguments import call as call_module

IR_VERSION = 10
"""That of the files that torch.onnx.export writes."""
_VIEWS = (Tensor.reshape, Tensor.to)


def entrywise_strategy_of(module: torch.nn.Module) -> str:
    """Return the fusion's strategy where the module is one that combines its inputs entry by entry; "" for others."""
    fusion = bare_fusion(module)
    if fusion is None or not fusion.entrywise or fusion.signature.config is None:
        return ""
    return fusion.strategy()


class Call(NamedTuple):
    """A call of a fusion's torch op: the op, its arguments, what the parameters are views or copies of, the result."""

    packet: Any
    xs: Sequence[Tensor]
    params: Sequence[Tensor]
    config: str
    sources: Sequence[Tensor]
    y: Any


class Observation(TorchFunctionMode):
    """Notes each call of a fusion's torch op, and whether anything else is computed, views of parameters aside."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._calls: list[Call] = []
        self._plain = True
        self._inputs = inputs
        self._views: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was called, and note it."""
        result = func(*args, **(kwargs or {}))
        if func in STRATEGIES:
            xs, params, config = args
            self._calls.append(Call(func, xs, params, config, [self._source(p) for p in params], result))
        elif func in _VIEWS and not any(args[0] is x for x in self._inputs):
            self._views.append((result, args[0]))
        elif getattr(func, "__name__", "") != "__get__" and func is not Tensor.__len__:
            self._plain = False
        return result

    def only_call(self, outputs: Any) -> Call | None:
        """Return the call that gave the outputs, None where there was more than that."""
        single = self._plain and len(self._calls) == 1 and self._calls[0].y is outputs
        return self._calls[0] if single else None

    def _source(self, tensor: Tensor) -> Tensor:
        return next((self._source(base) for view, base in self._views if view is tensor and base is not tensor), tensor)


def observe(module: torch.nn.Module, inputs: GraphInputs) -> tuple[Any, Observation | None]:
    """Run a module on its example; return its outputs, and the observation where it may be a fusion by itself.

    The example is what the module may write into: give a copy.
    """
    if not _may_be_single(module):
        return call_module(module, inputs.args), None
    with Observation(inputs.leaves()) as observation:
        outputs = call_module(module, inputs.args)
    return outputs, observation


def single(
    module: torch.nn.Module, inputs: GraphInputs, outputs: Any, observation: Observation | None, name: str, opset: int
) -> ir.Model | None:
    """Return the model of a module that is one fusion, as tracing it would give it; None where that is not certain.

    Args:
        module: the module, which was run on the inputs.
        inputs: the graph's inputs.
        outputs: its outputs on them.
        observation: what `observe` returned with them.
        name: of the graph's output.
        opset: of the standard operators.
    """
    call = None if observation is None else observation.only_call(outputs)
    if call is None:
        return None
    shape, places = _output_shape(call, inputs), _places(call, inputs)
    memory = [source.untyped_storage().data_ptr() for source in call.sources]
    if shape is None or places is None or len(set(memory)) < len(memory):
        return None
    if not (_is_builtin(module) or _has_one_branch(module, inputs, call, places, shape)):
        return None
    return _write(module, inputs, call, places, _value(name, call.y, shape), opset)


def _places(call: Call, inputs: GraphInputs) -> list[int | None] | None:
    """Return which graph input each of the node's inputs is, None for a constant.

    None in place of the list where a graph input is not what the node takes, once and as it is.
    """
    leaves = inputs.leaves()
    tensors = [*call.xs, *call.params]
    places = [next((i for i, leaf in enumerate(leaves) if leaf is tensor), None) for tensor in tensors]
    fused_places, parameter_places = (
        places[: len(call.xs)],
        [place for place in places[len(call.xs) :] if place is not None],
    )
    input_places = [place for place in places if place is not None]
    if (
        None in fused_places
        or sorted(input_places) != list(range(len(leaves)))
        or any(inputs.axes[place] for place in parameter_places)
    ):
        return None
    return None if any(tensor.is_meta for tensor in tensors) else places


def _write(
    module: torch.nn.Module, inputs: GraphInputs, call: Call, places: Sequence[int | None], y: ir.Value, opset: int
) -> ir.Model | None:
    """Write the graph of one node; None where a constant has the name of an input or of the output."""
    graph_inputs = [
        _value(name, leaf, [axes.get(i, size) for i, size in enumerate(leaf.shape)])
        for name, leaf, axes in zip(inputs.names, inputs.leaves(), inputs.axes, strict=True)
    ]
    path = next((path for path, part in module.named_modules() if isinstance(part, Fusion)), "")
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    constants = [
        None if place is not None else _constant(names.get(id(source), f"parameter_{i}"), parameter)
        for i, (parameter, source, place) in enumerate(
            zip(call.params, call.sources, places[len(call.xs) :], strict=True)
        )
    ]
    initializers = [constant for constant in constants if constant is not None]
    if {constant.name for constant in initializers} & {y.name, *inputs.names}:
        return None
    values = [
        constant if place is None else graph_inputs[place]
        for place, constant in zip(places, [*[None] * len(call.xs), *constants], strict=True)
    ]
    node = ir.node(
        STRATEGIES[call.packet],
        values,
        {"config": call.config, "torch_op": str(call.packet), "count": len(call.xs)},
        domain=DOMAIN,
        outputs=[y],
        metadata_props={SCOPES: repr(["", path])},
    )
    opsets = {"": opset, DOMAIN: 1}
    graph = ir.Graph(graph_inputs, [y], nodes=[node], initializers=initializers, opset_imports=opsets, name="single")
    return ir.Model(graph, ir_version=IR_VERSION)


def _may_be_single(module: torch.nn.Module) -> bool:
    """Whether it is a fusion or a layer of one, with no other tensors and no hooks."""
    fusion = module.fusion if type(module) is FusionLayer else module
    if type(fusion) is Isolated:
        return True
    if not isinstance(fusion, Fusion) or bare_fusion(module) is None:
        return False
    names = {name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    prefix = "" if module is fusion else "fusion."
    buffers = {f"{prefix}{name}" for name in fusion._buffers}
    odd = any(isinstance(buffer, torch.nn.Parameter) for buffer in fusion._buffers.values())
    return not odd and names <= {*buffers, *(["w"] if prefix else [])}


def _is_builtin(module: torch.nn.Module) -> bool:
    """Whether all that ran is this package's: a strategy of its own, and nothing put in place of its methods."""
    fusion = module.fusion if isinstance(module, FusionLayer) else module
    cls = type(prototype(fusion.op, fusion.config)) if isinstance(fusion, Isolated) else type(fusion)
    parts = {id(part): part for part in (module, fusion)}.values()
    replaced = any(inspect.isroutine(getattr(type(part), name, None)) for part in parts for name in part.__dict__)
    return cls.__module__.startswith(f"{fusions.__name__}.") and not replaced


def _has_one_branch(
    module: torch.nn.Module, inputs: GraphInputs, call: Call, places: Sequence[int | None], shape: Sequence[int | str]
) -> bool:
    """Whether torch.export, for which sizes are symbols, sees the same one call and the same output's shape."""
    try:
        with quiet(), torch.no_grad():
            shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in inputs.axes)
            program = torch.export.export(Flat(module, inputs.args), inputs.leaves(), dynamic_shapes=(shapes,))
    except Exception:  # whatever it raises, tracing will meet it too, and say it
        return False
    signature = program.graph_signature
    arguments = [
        node for node in program.graph.nodes if node.op == "placeholder" and node.name in signature.user_inputs
    ]
    readers = [
        node for node in program.graph.nodes if node.op == "call_function" and {*arguments} & {*node.all_input_nodes}
    ]
    changed = signature.buffers_to_mutate or signature.user_inputs_to_mutate
    if len(readers) != 1 or readers[0].target is not call.packet or changed or limits(program):
        return False
    (node,) = readers
    tensors = [value for value in arguments if isinstance(value.meta.get("val"), Tensor)]
    order = [tensors.index(value) if value in tensors else None for value in node.args[0]]
    if order != places[: len(call.xs)] or signature.user_outputs != (node.name,):
        return False
    sizes, first = node.meta["val"].shape, node.args[0][0].meta["val"].shape
    return all(
        str(size) == str(first[i]) if isinstance(expected, str) else size == expected
        for i, (size, expected) in enumerate(zip(sizes, shape, strict=True))
    )


def _output_shape(call: Call, inputs: GraphInputs) -> list[int | str] | None:
    """Return the sizes of the output's axes, and the names of its dynamic ones; None where they are not certain."""
    fusion, xs, y = prototype(call.packet, call.config), call.xs, call.y
    axes = {id(leaf): names for leaf, names in zip(inputs.leaves(), inputs.axes, strict=True)}
    axis_names = axes.get(id(xs[0]), {})
    width = xs[0].ndim - 1
    alike = all(axes.get(id(x)) == axis_names and x.ndim == width + 1 for x in xs)
    free = width not in axis_names or (fusion.entrywise and fusion.dims is None)
    if not alike or not free or len(set(axis_names.values())) != len(axis_names):
        return None
    if y.dtype != xs[0].dtype or y.ndim != width + 1 or y.shape[:-1] != xs[0].shape[:-1]:
        return None
    return [axis_names.get(i, size) for i, size in enumerate(y.shape)]


def _value(name: str, like: Tensor, shape: Sequence[int | str]) -> ir.Value:
    kind = ir.TensorType(tensor_adapters.from_torch_dtype(like.dtype))
    return ir.Value(name=name, type=kind, shape=ir.Shape(list(shape)))


def _constant(name: str, tensor: Tensor) -> ir.Value:
    value = _value(name, tensor, list(tensor.shape))
    value.const_value = tensor_adapters.TorchTensor(tensor.detach(), name=name)
    return value
