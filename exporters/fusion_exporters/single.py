"""A fusion by itself: its graph is one node that is known beforehand, so it is written, and nothing is traced.

What the module does is observed while it runs once on the example. Where that is one call of a fusion's torch op on the
inputs as they are, and nothing else, the graph follows from the call; where it is anything more, torch traces it. One
run shows one branch, so a class that is not this package's own has to show by torch.export, too, that it has no other.
"""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fusion_exporters.inputs import Signature
from fusion_onnx import fusions
from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.torch_op import DOMAIN, STRATEGY_OF_OP, stand_in

IR_VERSION = 10
"""That of the files that torch.onnx.export writes."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""The key under which torch.onnx.export keeps the modules' paths of a node."""
_VIEWS = (Tensor.reshape, Tensor.to)


class Isolated(torch.nn.Module):
    """One call of a fusion's torch op by itself, its parameters constant, as they are in a trained network."""

    def __init__(self, fusion: Fusion, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.op, self.config = fusion._op, str(fusion._record)
        for i, parameter in enumerate(parameters):
            self.register_buffer(f"p{i}", parameter)

    def forward(self, *xs: Tensor) -> Tensor:
        """Fuse k tensors (..., n_i) into one (..., n)."""
        fused: Tensor = self.op(list(xs), list(self.buffers()), self.config)
        return fused


class Observation(TorchFunctionMode):
    """Notes each call of a fusion's torch op, and whether an input goes through any other operator."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Any]] = []
        self.plain = True
        self._inputs = inputs
        self._views: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was called, and note it."""
        result = func(*args, **(kwargs or {}))
        if func in STRATEGY_OF_OP:
            self.calls.append((func, args, result))
        elif func in _VIEWS and not any(args[0] is x for x in self._inputs):
            self._views.append((result, args[0]))
        elif getattr(func, "__name__", "") != "__get__" and func is not Tensor.__len__:
            self.plain = False
        return result

    def source(self, tensor: Tensor) -> Tensor:
        """Return what a tensor is a view or a copy of, itself if nothing."""
        return next((self.source(base) for view, base in self._views if view is tensor and base is not tensor), tensor)


def observe(module: torch.nn.Module, inputs: Signature) -> tuple[Any, Observation | None]:
    """Run a module on its example; return its outputs, and what was seen where it may be a fusion by itself."""
    if not _may_be_single(module):
        return module(*inputs.args), None
    with Observation(inputs.leaves()) as seen:
        outputs = module(*inputs.args)
    return outputs, seen


def single(
    module: torch.nn.Module, inputs: Signature, outputs: Any, seen: Observation | None, name: str, opset: int
) -> ir.Model | None:
    """Return the model of a module that is one fusion, as tracing it would give it; None where that is not certain.

    Args:
        module: the module, which was run on the inputs.
        inputs: the graph's inputs.
        outputs: what it gave.
        seen: what `observe` saw meanwhile.
        name: of the graph's output.
        opset: of the standard operators.
    """
    if seen is None or not seen.plain or len(seen.calls) != 1 or seen.calls[0][2] is not outputs:
        return None
    packet, (xs, params, config), y = seen.calls[0]
    leaves, fusion = inputs.leaves(), stand_in(packet, config)
    shape = _output_shape(fusion, inputs, xs, y)
    used = [next((i for i, leaf in enumerate(leaves) if leaf is x), -1) for x in xs]
    trained = [i for i, leaf in enumerate(leaves) if any(leaf is p for p in params)]
    if shape is None or sorted([*used, *trained]) != list(range(len(leaves))) or any(inputs.axes[i] for i in trained):
        return None
    memory = [seen.source(p).untyped_storage().data_ptr() for p in params]
    if len(set(memory)) < len(memory) or any(t.is_meta for t in (*leaves, *params)):
        return None
    if not (_is_ours(module) or _has_one_branch(module, inputs, packet, used, shape)):
        return None
    formal = [
        _value(given, leaf, [axes.get(i, size) for i, size in enumerate(leaf.shape)])
        for given, leaf, axes in zip(inputs.names, leaves, inputs.axes, strict=True)
    ]
    path = next((path for path, part in module.named_modules() if isinstance(part, Fusion)), "")
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    constants = []
    values = [formal[i] for i in used]
    for i, parameter in enumerate(params):
        place = next((j for j in trained if leaves[j] is parameter), None)
        if place is None:
            constants.append(_constant(names.get(id(seen.source(parameter)), f"parameter_{i}"), parameter))
        values.append(constants[-1] if place is None else formal[place])
    if {constant.name for constant in constants} & {name, *inputs.names}:
        return None
    node = ir.node(
        STRATEGY_OF_OP[packet].strategy(),
        values,
        {"config": config, "torch_op": str(packet), "count": len(xs)},
        domain=DOMAIN,
        outputs=[_value(name, y, shape)],
        metadata_props={SCOPES: repr(["", path])},
    )
    graph = ir.Graph(
        formal, node.outputs, nodes=[node], initializers=constants, opset_imports={"": opset, DOMAIN: 1}, name="single"
    )
    return ir.Model(graph, ir_version=IR_VERSION)


def _may_be_single(module: torch.nn.Module) -> bool:
    """Whether it is a fusion or a layer of one, with no other tensors and no hooks."""
    fusion = module.fusion if type(module) is FusionLayer else module
    if type(fusion) is Isolated:
        return True
    if not isinstance(fusion, Fusion) or not fusion.is_strategy():
        return False
    parts = {id(part): part for part in (module, fusion)}.values()
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    names = {name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    prefix = "" if module is fusion else "fusion."
    buffers = {f"{prefix}{name}" for name in fusion._buffers}
    odd = any(isinstance(buffer, torch.nn.Parameter) for buffer in fusion._buffers.values())
    return not hooked and not odd and names <= {*buffers, *(["w"] if prefix else [])}


def _is_ours(module: torch.nn.Module) -> bool:
    """Whether all that ran is this package's: a strategy of its own, and nothing put in place of its methods."""
    fusion = module.fusion if isinstance(module, FusionLayer) else module
    cls = type(stand_in(fusion.op, fusion.config)) if isinstance(fusion, Isolated) else type(fusion)
    parts = {id(part): part for part in (module, fusion)}.values()
    replaced = any(inspect.isroutine(getattr(type(part), name, None)) for part in parts for name in part.__dict__)
    return cls.__module__.startswith(f"{fusions.__name__}.") and not replaced


def _has_one_branch(
    module: torch.nn.Module, inputs: Signature, packet: Any, used: Sequence[int], shape: Sequence[int | str]
) -> bool:
    """Whether torch.export, for which sizes are symbols, sees the same one call and the same output's shape."""
    try:
        with quiet(), torch.no_grad():
            shapes = pytree.tree_map_only(str, lambda _: torch.export.Dim.DYNAMIC, inputs.dynamic_shapes())
            program = torch.export.export(module, inputs.args, dynamic_shapes=shapes)
    except Exception:  # whatever it raises, tracing will meet it too, and say it
        return False
    signature, nodes = program.graph_signature, list(program.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder" and node.name in signature.user_inputs]
    calls = [node for node in nodes if node.target is packet]
    reached = set(given)
    for node in nodes:
        if node.op == "call_function" and node not in calls and reached & set(node.all_input_nodes):
            return False
    bounded = any(str(allowed.upper).isdigit() for allowed in program.range_constraints.values())
    mutated = signature.buffers_to_mutate or signature.user_inputs_to_mutate
    if len(calls) != 1 or bounded or mutated or signature.user_outputs != (calls[0].name,):
        return False
    (call,) = calls
    tensors = [node for node in given if isinstance(node.meta.get("val"), Tensor)]
    if [tensors.index(node) if node in tensors else -1 for node in call.args[0]] != list(used):
        return False
    sizes, first = call.meta["val"].shape, call.args[0][0].meta["val"].shape
    return all(
        str(size) == str(first[i]) if isinstance(wanted, str) else size == wanted
        for i, (size, wanted) in enumerate(zip(sizes, shape, strict=True))
    )


def _output_shape(fusion: Fusion, inputs: Signature, xs: Sequence[Tensor], y: Tensor) -> list[int | str] | None:
    """Return the sizes of the output's axes, and the names of its dynamic ones; None where they are not certain."""
    axes = {id(leaf): named for leaf, named in zip(inputs.leaves(), inputs.axes, strict=True)}
    named = axes.get(id(xs[0]), {})
    width = xs[0].ndim - 1
    alike = all(axes.get(id(x)) == named and x.ndim == width + 1 for x in xs)
    free = width not in named or (fusion.entrywise and fusion.dims is None)
    if not alike or not free or len(set(named.values())) != len(named):
        return None
    if y.dtype != xs[0].dtype or y.ndim != width + 1 or y.shape[:-1] != xs[0].shape[:-1]:
        return None
    return [named.get(i, size) for i, size in enumerate(y.shape)]


def _value(name: str, like: Tensor, shape: Sequence[int | str]) -> ir.Value:
    kind = ir.TensorType(tensor_adapters.from_torch_dtype(like.dtype))
    return ir.Value(name=name, type=kind, shape=ir.Shape(list(shape)))


def _constant(name: str, tensor: Tensor) -> ir.Value:
    value = _value(name, tensor, list(tensor.shape))
    value.const_value = tensor_adapters.TorchTensor(tensor.detach(), name=name)
    return value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's notes on its own insides (absent torchvision, merged axis names) from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
