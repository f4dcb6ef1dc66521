"""What a fusion is: the base class, its checks, options and torch op. One import for a strategy."""

from fusion_onnx.contract.case import Case
from fusion_onnx.contract.form import Form, form
from fusion_onnx.contract.function import function
from fusion_onnx.contract.fusion import Array, Fusion
from fusion_onnx.contract.layer import FusionLayer
from fusion_onnx.contract.rounding import Arithmetic
from fusion_onnx.errors import FusionError

__all__ = ["Arithmetic", "Array", "Case", "Form", "Fusion", "FusionError", "FusionLayer", "form", "function"]
