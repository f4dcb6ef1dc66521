"""Back to PyTorch: the file turned into a module again by onnx2pytorch."""

import warnings
from collections.abc import Sequence
from typing import Any

from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of
from fusion_onnx.verification.backends._module import call


class PytorchRoundtrip(Backend):
    """`onnx2pytorch.ConvertModel`, in eager mode."""

    title = "PyTorch, from the ONNX file (onnx2pytorch)"
    install = "pip install 'fusion-onnx[roundtrip]'"
    inlined = True

    def __init__(self, model: bytes, module: Any = None) -> None:
        import onnx

        _make_torchvision_importable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnx2pytorch

            self._module = onnx2pytorch.ConvertModel(onnx.load_from_string(model), experimental=True)
        self._module.eval()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the module."""
        return call(self._module, inputs)

    @classmethod
    def missing(cls) -> str:
        """Look for onnx2pytorch and what it needs."""
        return lacks(cls, "onnx2pytorch", "torchvision", "torch", "onnx")

    @classmethod
    def version(cls) -> str:
        """Say the version of onnx2pytorch."""
        return version_of("onnx2pytorch")


_OPERATORS: list[Any] = []


def _make_torchvision_importable() -> None:
    """Declare the two operators that torchvision's Python code expects of its compiled part, where that is missing.

    The wheel from PyPI is compiled for the CUDA build of torch, and does not load beside a CPU build; onnx2pytorch
    imports torchvision, and uses none of its operators here.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS.append(library)  # an operator lives as long as its library
