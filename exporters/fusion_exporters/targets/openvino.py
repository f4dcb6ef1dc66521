"""OpenVINO IR: the graph in an .xml file, the weights in a .bin file beside it.

OpenVINO's reader knows no functions of the model's own, so each fusion is its standard operators, which keep its name.
The weights stay as they are: OpenVINO would store float32 as float16, and then it is another model than the verified
one. Load it with the option that keeps float32 where the processor has bfloat16, too:

    openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
"""

import shutil
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from fusion_exporters.errors import ExportError
from fusion_exporters.graph import inline_bodies
from fusion_exporters.targets._target import Target
from fusion_onnx.files import vacant, written

LENGTH = 600


class OpenVINO(Target):
    """Intel's runtime, on its CPUs, GPUs and NPUs."""

    title = "OpenVINO IR"
    install = "pip install 'fusion-onnx[openvino]'"

    def write(self, model: onnx.ModelProto, path: Path, *, overwrite: bool) -> tuple[Path, ...]:
        """Write `path`, which ends in .xml, and the .bin file beside it."""
        import openvino

        if path.suffix != ".xml":
            raise ExportError(f"OpenVINO IR is a file that ends in .xml; got {path}.")
        weights = path.with_suffix(".bin")
        for file in (path, weights):
            vacant(file, overwrite=overwrite)
        with tempfile.TemporaryDirectory(prefix=".fusion-onnx.", dir=path.parent) as name:
            source, result = Path(name, "model.onnx"), Path(name, "model.xml")
            ir.save(inline_bodies(ir.from_proto(model)), source, external_data="model.onnx.data")  # for 2 GiB and more
            try:
                network = openvino.Core().read_model(source)
            except RuntimeError as error:
                raise ExportError(f"OpenVINO cannot read the model: {' '.join(str(error).split())[:LENGTH]}") from error
            openvino.save_model(network, result, compress_to_fp16=False)
            if overwrite:  # no reader may find the old graph beside new weights
                path.unlink(missing_ok=True)
            for part, file in ((result.with_suffix(".bin"), weights), (result, path)):
                with part.open("rb") as stream, written(file, overwrite=overwrite) as output:
                    shutil.copyfileobj(stream, output)
        return path, weights
