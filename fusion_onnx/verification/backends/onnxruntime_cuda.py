"""ONNX Runtime on an NVIDIA GPU."""

from fusion_onnx.verification.backends._onnxruntime import OnnxRuntime


class OnnxRuntimeCuda(OnnxRuntime):
    """CUDAExecutionProvider, in full float32 (no TF32)."""

    title = "ONNX Runtime, CUDA provider"
    install = "pip install 'fusion-onnx[gpu]'"
    provider = "cuda"
