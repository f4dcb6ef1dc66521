"""From a module to a graph by torch's own exporter, with each fusion as one opaque node."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset

from fusion_exporters import attention, doubles, operators
from fusion_exporters.inputs import ExportError, Signature
from fusion_onnx.errors import FusionError
from fusion_onnx.torch_op import DOMAIN, STRATEGY_OF_OP

try:
    from torch.export import _patches
except ImportError:  # an older torch, whose torch.onnx.export does without
    _patches = None  # type: ignore[assignment]

SCOPES = "pkg.torch.onnx.name_scopes"
"""The key under which torch.onnx.export keeps, at a node, the paths of the modules that it was traced in."""
_FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]


def traced(module: torch.nn.Module, inputs: Signature, names: Sequence[str], opset: int) -> ir.Model:
    """Return the model that torch traces, with each fusion as one opaque node; names: of its outputs.

    Raises ExportError where torch cannot, FusionError where the inputs break a fusion's contract.
    """
    try:
        with quiet(), _recurrent(), operators.exact_rules(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (*inputs.args, {}),  # a last argument that is a mapping is taken for keywords: let that be this one
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=inputs.names,
                output_names=list(names),
                dynamic_shapes=inputs.dynamic_shapes(),
                custom_translation_table=translations(),
            )
    except (FusionError, ExportError):
        raise
    except Exception as error:
        raise ExportError(_reason(error, inputs)) from error
    assert program is not None
    for symbol, largest in limits(program.exported_program).items():
        raise ExportError(
            f"the module does something else where a dynamic axis is larger than {largest} ({symbol}); an "
            "exported graph does one thing. Leave the axis static (dynamic=), or branch with torch.cond."
        )
    operators.keep_dtypes(program)
    operators.keep_constants(program.model)
    operators.keep_infinities(program.model)
    doubles.keep_scalars(program)
    doubles.keep_digits(program.model)
    return program.model


def limits(program: Any) -> dict[str, str]:
    """Return the largest size of each axis for which a traced program holds, where there is one.

    A module that takes one branch for small batches and another for large ones was traced in one of them. A size that
    depends on data, as nonzero's, has no limit but that of its type.
    """
    ranges = getattr(program, "range_constraints", {})
    found = {str(symbol): str(allowed.upper) for symbol, allowed in ranges.items()}
    return {
        symbol: largest for symbol, largest in found.items() if largest.isdigit() and int(largest) < sys.maxsize - 1
    }


def _reason(error: BaseException, inputs: Signature) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause).strip()
    asked = {name: axes for name, axes in zip(inputs.names, inputs.axes, strict=True) if axes}
    signs = ("specialized", "static shape", "not all values", "Constraints violated")
    if any(sign in text for sign in signs):
        lines = [line.strip(" -") for line in text.splitlines() if any(sign in line for sign in signs[:3])]
        return (
            f"the module fixes an axis that was to be dynamic, {asked}. torch says: {' '.join(lines) or text} "
            "Take sizes from x.shape inside forward, not from numbers; or say which axes are dynamic with dynamic=."
        )
    return f"torch could not export the module. {type(cause).__name__}: {text[:2000]}"


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


@contextlib.contextmanager
def _recurrent() -> Iterator[None]:
    """Keep the time axis of LSTM and GRU dynamic from the first to the last step of torch.onnx.export.

    It does so itself in its first step alone: in the next one, torch's own kernel takes the example's length for a
    constant. And what torch keeps of the one kernel is wrong for the other, so a process's second export would fail.
    """
    operators = {"lstm": torch.ops.aten.lstm.input, "gru": torch.ops.aten.gru.input}
    try:
        with contextlib.ExitStack() as stack:
            for name in operators:
                if register := getattr(_patches, f"register_{name}_while_loop_decomposition", None):
                    stack.enter_context(register())
            for operator in operators.values():
                operator._dispatch_cache.clear()
            yield
    finally:
        for operator in operators.values():
            operator._dispatch_cache.clear()


def translations() -> dict[Any, Any]:
    """Return the table that keeps each fusion's torch op as one node of our domain, whatever the optimiser does.

    Beside them: what torch's own translations get wrong.
    """
    fusions = {packet: _translation(packet, cls.strategy()) for packet, cls in STRATEGY_OF_OP.items()}
    return {**fusions, **attention.translations(), **doubles.translations(), **operators.translations()}


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
