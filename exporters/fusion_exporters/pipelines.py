"""For pipelines that call `torch.onnx.export` themselves: its table of translations, and the bodies of what it leaves.

program = torch.onnx.export(module, args, dynamo=True, custom_translation_table=fusion_onnx.translations())
fusion_onnx.attach(program, module).save("model.onnx")
"""

from typing import Any

import onnx
import onnx_ir as ir
import torch

from fusion_exporters import graph
from fusion_exporters.errors import ExportError
from fusion_exporters.forms.choice import Chooser
from fusion_exporters.translation import doubles, operators, tracing
from fusion_onnx.file_format import DOMAIN, FORMS, VERSION, version


def translations() -> dict[Any, Any]:
    """Return what `torch.onnx.export(custom_translation_table=...)` takes, so that each fusion becomes one node.

    Beside fusions it holds what torch's own translations lose, such as attention to nothing. Make the fusions first:
    the table has those whose classes are loaded.
    """
    return tracing.translations()


def attach(model: Any, module: torch.nn.Module | None = None) -> Any:
    """Attach to each fusion's node the function that says what it computes; return the model, changed in place.

    Args:
        model: what `torch.onnx.export` returned with `translations()`, its `onnx_ir.Model`, or an onnx.ModelProto.
        module: what was exported; with it nodes and parameters are named after its parts.

    Raises:
        ExportError: the model has no node of a fusion, or its nodes have bodies already.
    """
    proto = model if isinstance(model, onnx.ModelProto) else None
    ir_model = ir.from_proto(proto) if proto is not None else getattr(model, "model", model)
    if not isinstance(ir_model, ir.Model):
        raise ExportError(f"attach takes what torch.onnx.export returns, or a model; got {type(model).__name__}.")
    bare = [node for node in ir_model.graph.all_nodes() if node.domain == DOMAIN and "torch_op" in node.attributes]
    if not bare:
        raise ExportError(
            "the model has no node of a fusion without a body: export it with "
            "custom_translation_table=fusion_onnx.translations()."
        )
    if getattr(model, "exported_program", None) is not None:
        operators.keep_dtypes(model)
        doubles.keep_scalars(model)
    operators.keep_constants(ir_model)
    operators.keep_infinities(ir_model)
    doubles.keep_digits(ir_model)
    forms = graph.attach_bodies(ir_model, module or torch.nn.Module(), Chooser())
    graph.describe(ir_model, {VERSION: version(), FORMS: forms})
    if proto is not None:
        proto.CopyFrom(ir.to_proto(ir_model))
    return model
