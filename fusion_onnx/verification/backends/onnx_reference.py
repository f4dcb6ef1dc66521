"""ONNX's own reference implementation: what the standard says, in numpy."""

from collections.abc import Sequence
from typing import Any

from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of


class OnnxReference(Backend):
    """`onnx.reference.ReferenceEvaluator`."""

    title = "ONNX reference evaluator"
    install = "pip install 'fusion-onnx[export]'"
    bitwise = True

    def __init__(self, model: bytes, module: Any = None) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(onnx.load_from_string(model))

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Evaluate node by node."""
        feeds = dict(zip(self._evaluator.input_names, inputs, strict=True))
        return list(self._evaluator.run(None, feeds))

    @classmethod
    def missing(cls) -> str:
        """Look for onnx."""
        return lacks(cls, "onnx")

    @classmethod
    def version(cls) -> str:
        """Say onnx's version."""
        return version_of("onnx")
