"""From a module to a graph by torch's own exporter, with each fusion as one opaque node."""

import ast
import contextlib
import importlib
import itertools
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset
from torch.utils import _pytree as pytree

from fusion_exporters.errors import ExportError
from fusion_exporters.graph_inputs import GraphInputs
from fusion_exporters.translation import attention, doubles, losses, operators
from fusion_exporters.translation.reasons import reason
from fusion_exporters.translation.recurrent import dynamic_time
from fusion_onnx.contract.torch_op import STRATEGIES
from fusion_onnx.errors import FusionError
from fusion_onnx.file_format import DOMAIN, LIMITS
from fusion_onnx.verification.arguments import call

Limits = tuple[int, int | None]
SCOPES = "pkg.torch.onnx.name_scopes"
"""The key under which torch.onnx.export keeps, at a node, the paths of the modules that it was traced in."""
_ENDLESS = 2**24
_FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]


def trace(module: torch.nn.Module, inputs: GraphInputs, names: Sequence[str], opset: int) -> ir.Model:
    """Return the model that torch traces, with each fusion as one opaque node; names: of its outputs.

    Raises ExportError where torch cannot, FusionError where the inputs break a fusion's contract.
    """
    try:
        with quiet(), dynamic_time(), operators.exact_rules(), losses.shapes_of_losses(), torch.no_grad():
            program = torch.onnx.export(
                Flat(module, inputs.args),
                inputs.leaves(),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=inputs.names,
                output_names=list(names),
                dynamic_shapes=(tuple(inputs.axes),),
                custom_translation_table=translations(),
            )
    except (FusionError, ExportError):
        raise
    except Exception as error:
        raise ExportError(reason(error, inputs)) from error
    assert program is not None
    program.model.meta[LIMITS] = _by_axis(program.exported_program, inputs)
    operators.keep_dtypes(program)
    operators.keep_constants(program.model)
    operators.keep_infinities(program.model)
    doubles.keep_scalars(program)
    doubles.keep_digits(program.model)
    _unwrap(program.model)
    _distinct(program.model)
    return program.model


def import_compiler() -> None:
    """Import torch's compiler, as tracing does later: a torch.cond that imports it would compile what watches it."""
    importlib.import_module("torch._dynamo")


class Flat(torch.nn.Module):
    """A module as a function of tensors: what else is in its example is fixed, and None is left out of its outputs."""

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        leaves, self._spec = pytree.tree_flatten(args)
        self._leaves = [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        """Call the module; return the tensors that it gives."""
        iterator = iter(tensors)
        leaves = [next(iterator) if leaf is _TENSOR else leaf for leaf in self._leaves]
        with operators.Bounds():
            outputs = call(self.module, pytree.tree_unflatten(leaves, self._spec))
        return [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]


_TENSOR = object()
_WITHIN = "module"
"""The path of the module within Flat."""


def _unwrap(model: ir.Model) -> None:
    """Give parameters and operators the paths that they have in the module itself."""
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        path = _own_path(name)
        if path != name and path not in initializers:
            del initializers[name]
            value.name = path
            initializers[path] = value
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        if scopes[:1] == [""]:
            node.metadata_props[SCOPES] = repr([_own_path(scope) for scope in scopes[1:-1]] + scopes[-1:])


def _distinct(model: ir.Model) -> None:
    """Rename what within the graph has the name of an input or output: torch named its values without these."""
    outer = {id(value): value for value in (*model.graph.inputs, *model.graph.outputs)}
    names = {str(value.name) for value in outer.values()}
    values = [
        value
        for graph in (model.graph, *model.graph.subgraphs())
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
        if id(value) not in outer
    ]
    all_names = names | {str(value.name) for value in values}
    for value in values:
        if value.name in names:
            old = str(value.name)
            new = next(name for i in itertools.count(1) if (name := f"{old}_{i}") not in all_names)
            all_names.add(new)
            graph = value.graph if value.is_initializer() else None
            if graph is not None:
                del graph.initializers[old]
            value.name = new
            if graph is not None:
                graph.initializers[new] = value


def _own_path(path: str) -> str:
    return "" if path == _WITHIN else path.removeprefix(f"{_WITHIN}.")


def limits(program: Any) -> dict[str, Limits]:
    """Return the least and the largest size of each axis for which a traced program holds, where there are any.

    A module that takes one branch for small batches and another for large ones was traced in one of them. A size that
    depends on data, as nonzero's, has no limit but that of its type; less than two rows are traced as two are.
    """
    ranges: dict[str, Limits] = {}
    for symbol, interval in getattr(program, "range_constraints", {}).items():
        least, most = (int(str(end)) if str(end).isdigit() else None for end in (interval.lower, interval.upper))
        least = least if least is not None and least > 2 else 0
        most = most if most is not None and most < sys.maxsize - 1 else None
        if least or most is not None:
            ranges[str(symbol)] = (least, most)
    return ranges


def _by_axis(program: Any, inputs: GraphInputs) -> dict[str, Limits]:
    """Return the limits by the axes' names; those of sizes that depend on data are the module's own affair."""
    users = set(program.graph_signature.user_inputs)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    names = {
        str(shape[axis]): name for shape, axes in zip(shapes, inputs.axes, strict=True) for axis, name in axes.items()
    }
    sizes, ranges = inputs.sizes(), {names[symbol]: ends for symbol, ends in limits(program).items() if symbol in names}
    for node in program.graph.nodes:
        condition = node.meta.get("val")
        if isinstance(condition, torch.SymBool) and not node.users:  # torch has taken away what asserted it
            symbols = list(condition.node.expr.free_symbols)
            name = names.get(str(symbols[0]), "") if len(symbols) == 1 else ""
            most = _largest(condition.node.expr, symbols[0], sizes[name]) if name else None
            if most is not None:
                least, limit = ranges.get(name, (0, None))
                ranges[name] = least, most if limit is None else min(most, limit)
    return ranges


def _largest(condition: Any, symbol: Any, size: int) -> int | None:
    """Return the largest value of a symbol, from one for which a condition holds on; None where there is no end."""

    def holds(value: int) -> bool:
        return bool(condition.subs({symbol: value}) == True)  # noqa: E712 what is not decided does not hold

    if not holds(size):
        return None
    while holds(2 * size):
        size *= 2
        if size > _ENDLESS:
            return None
    most, beyond = size, 2 * size
    while beyond - most > 1:
        middle = (most + beyond) // 2
        most, beyond = (middle, beyond) if holds(middle) else (most, middle)
    return None if any(holds(beyond + i) for i in range(1, 9)) else most  # every fourth is no end


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's notes on its own insides (absent torchvision, graphs, merged axis names) from the user.

    The first thread to come makes it quiet, the last to go undoes it.
    """
    global _inside, _undo
    with _TURNS:
        if not _inside:
            _undo = _silence()
        _inside += 1
    try:
        yield
    finally:
        with _TURNS:
            _inside -= 1
            if not _inside:
                _undo.close()


_TURNS, _inside, _undo = threading.Lock(), 0, contextlib.ExitStack()


def _silence() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir"):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    from torch.export import _trace  # which imports the compiler

    vars(_trace)["print"] = lambda *args, **kwargs: None  # the graph so far, where an error stops it
    stack.callback(vars(_trace).pop, "print", None)
    return stack


def translations() -> dict[Any, Any]:
    """Return the table that keeps each fusion's torch op as one node of our domain, whatever the optimiser does.

    Beside them: what torch's own translations get wrong.
    """
    fusions = {packet: _translation(packet, name) for packet, name in STRATEGIES.items()}
    return {
        **fusions,
        **attention.translations(),
        **doubles.translations(),
        **losses.translations(),
        **operators.translations(),
    }


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
