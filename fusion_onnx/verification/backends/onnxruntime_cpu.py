"""ONNX Runtime on the processor, with its own kernels."""

from fusion_onnx.verification.backends._onnxruntime import OnnxRuntime


class OnnxRuntimeCpu(OnnxRuntime):
    """CPUExecutionProvider."""

    title = "ONNX Runtime, CPU provider"
    install = "pip install 'fusion-onnx[cpu]'"
    bitwise = True
    provider = "cpu"
