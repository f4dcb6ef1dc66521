"""For pipelines that call `torch.onnx.export` themselves: its table of translations, and the bodies of what it leaves.

program = torch.onnx.export(module, args, dynamo=True, custom_translation_table=fusion_onnx.translations())
fusion_onnx.attach(program, module).save("model.onnx")
"""

from typing import Any

import onnx
import onnx_ir as ir
import torch

import fusion_onnx
from fusion_exporters import doubles, graph, operators, tracing
from fusion_exporters.choice import Chooser
from fusion_exporters.inputs import ExportError
from fusion_onnx.file_format import DOMAIN


def translations() -> dict[Any, Any]:
    """Return what `torch.onnx.export(custom_translation_table=...)` takes, so that each fusion becomes one node.

    Beside fusions it holds what torch's own translations lose, such as attention to nothing. Make the fusions first:
    the table has those whose classes are loaded.
    """
    return tracing.translations()


def attach(model: Any, module: torch.nn.Module | None = None) -> Any:
    """Attach to each fusion's node the function that says what it computes; return what was given, changed in place.

    Args:
        model: what `torch.onnx.export` returned with `translations()`, its `onnx_ir.Model`, or an onnx.ModelProto.
        module: what was exported; with it nodes and parameters are named after its parts.

    Raises:
        ExportError: the model has no node of a fusion, or its nodes have bodies already.
    """
    proto = model if isinstance(model, onnx.ModelProto) else None
    given = ir.from_proto(proto) if proto is not None else getattr(model, "model", model)
    if not isinstance(given, ir.Model):
        raise ExportError(f"attach takes what torch.onnx.export returns, or a model; got {type(model).__name__}.")
    bare = [node for node in given.graph.all_nodes() if node.domain == DOMAIN and "torch_op" in node.attributes]
    if not bare:
        raise ExportError(
            "the model has no node of a fusion without a body: export it with "
            "custom_translation_table=fusion_onnx.translations()."
        )
    if getattr(model, "exported_program", None) is not None:
        operators.keep_dtypes(model)
        doubles.keep_scalars(model)
    operators.keep_constants(given)
    operators.keep_infinities(given)
    doubles.keep_digits(given)
    forms = graph.attach_bodies(given, module or torch.nn.Module(), Chooser())
    graph.describe(given, {"version": fusion_onnx.__version__, "forms": forms})
    if proto is not None:
        proto.CopyFrom(ir.to_proto(given))
    return model
