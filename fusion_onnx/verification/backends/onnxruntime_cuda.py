"""ONNX Runtime on an NVIDIA GPU."""

from fusion_onnx.runtime import diagnose
from fusion_onnx.verification.backends._onnxruntime import OnnxRuntime


class OnnxRuntimeCuda(OnnxRuntime):
    """CUDAExecutionProvider, in full float32 (no TF32)."""

    title = "ONNX Runtime, CUDA provider"
    install = "pip install 'fusion-onnx[gpu]'"
    provider = "cuda"

    @classmethod
    def missing(cls) -> str:
        """Start the provider."""
        if reason := super().missing():
            return reason
        for status in diagnose():
            if status.alias == cls.provider:
                return "" if status.starts else f"{status.reason}: {status.fix}"
        return f"the installed onnxruntime was built without CUDA: pip uninstall onnxruntime, then {cls.install}"
