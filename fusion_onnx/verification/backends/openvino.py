"""OpenVINO itself, on the processor; unlike its ONNX Runtime provider it also runs on other makers' than Intel's."""

import io
from collections.abc import Sequence
from typing import Any

from fusion_onnx.runtime import OPENVINO_EXACT
from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of


class Openvino(Backend):
    """OpenVINO's CPU plug-in, in float32."""

    title = "OpenVINO, CPU"
    install = "pip install 'fusion-onnx[openvino]'"
    inlined = True

    def __init__(self, model: bytes, module: Any = None) -> None:
        import openvino

        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", OPENVINO_EXACT)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one inference."""
        outputs = self._compiled(list(inputs))
        return [outputs[i].copy() for i in range(len(self._compiled.outputs))]

    @classmethod
    def missing(cls) -> str:
        """Look for openvino."""
        return lacks(cls, "openvino")

    @classmethod
    def version(cls) -> str:
        """Say OpenVINO's version."""
        return version_of("openvino")
