"""What the providers of ONNX Runtime share."""

from collections.abc import Sequence
from typing import Any

from fusion_onnx.runtime import Session
from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of


class OnnxRuntime(Backend):
    """A `fusion_onnx.runtime.Session` on one provider, with no return to another."""

    provider: str

    def __init__(self, model: bytes, module: Any = None) -> None:
        self._session = Session(model, self.provider)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the session."""
        return list(self._session.run(list(inputs)))

    @classmethod
    def missing(cls) -> str:
        """Look for onnxruntime."""
        return lacks(cls, "onnxruntime")

    @classmethod
    def version(cls) -> str:
        """Say the version of ONNX Runtime."""
        return version_of("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
