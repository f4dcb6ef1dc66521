"""ONNX Runtime with Intel's OpenVINO as its provider: Intel's CPUs, and what comes beside them."""

from fusion_onnx.verification.backends._backend import lacks, version_of
from fusion_onnx.verification.backends._onnxruntime import OnnxRuntime


class OnnxRuntimeOpenvino(OnnxRuntime):
    """OpenVINOExecutionProvider on the CPU, in float32."""

    title = "ONNX Runtime, OpenVINO provider"
    install = "pip install 'fusion-onnx[openvino]'"
    provider = "openvino"
    beside = ("cpu",)

    @classmethod
    def missing(cls) -> str:
        """Look for the plug-in, and whether it offers a CPU here."""
        return lacks(cls, "onnxruntime_ep_openvino") or super().missing()

    @classmethod
    def version(cls) -> str:
        """Say the plug-in's version."""
        return version_of("onnxruntime-ep-openvino")
