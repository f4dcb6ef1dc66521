"""PyTorch itself, operator by operator: what every other runtime is held against."""

from collections.abc import Sequence
from typing import Any

from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of
from fusion_onnx.verification.backends._module import as_function, call


class TorchEager(Backend):
    """The module, called."""

    title = "PyTorch, eager"
    install = "pip install 'fusion-onnx[export]'"
    from_module = True
    isolated = False
    bitwise = True

    def __init__(self, model: bytes, module: Any = None) -> None:
        self._function = as_function(model, module)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the module, without gradients."""
        return call(self._function, inputs)

    @classmethod
    def missing(cls) -> str:
        """Look for torch."""
        return lacks(cls, "torch")

    @classmethod
    def version(cls) -> str:
        """Say torch's version."""
        return version_of("torch")
