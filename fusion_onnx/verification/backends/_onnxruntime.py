"""What the providers of ONNX Runtime share."""

from collections.abc import Sequence
from typing import Any

from fusion_onnx.runtime import Session, diagnose
from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of


class OnnxRuntime(Backend):
    """A `fusion_onnx.runtime.Session` on one provider, no fused kernels; beside: those that may take what it leaves."""

    provider: str
    beside: tuple[str, ...] = ()

    def __init__(self, model: bytes, module: Any = None) -> None:
        self._session = Session(model, [self.provider, *self.beside], fuse=False, spin=False)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the session."""
        return list(self._session.run(list(inputs)))

    @classmethod
    def missing(cls) -> str:
        """Look for onnxruntime, and start the provider."""
        if reason := lacks(cls, "onnxruntime"):
            return reason
        for status in diagnose():
            if status.alias == cls.provider:
                return "" if status.starts else f"{status.reason}: {status.fix}"
        return f"the installed onnxruntime was built without it: pip uninstall onnxruntime, then {cls.install}"

    @classmethod
    def version(cls) -> str:
        """Say the version of ONNX Runtime."""
        return version_of("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
