"""PyTorch's compiler, inductor: the module as C++ made for it."""

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of
from fusion_onnx.verification.backends._module import as_function, call


class TorchCompile(Backend):
    """The module, compiled whole: a graph break or one recompilation too many is an error, not a return to eager."""

    title = "PyTorch, torch.compile (inductor)"
    install = "pip install 'fusion-onnx[export]'"
    from_module = True
    isolated = False

    def __init__(self, model: bytes, module: Any = None) -> None:
        import torch

        function = as_function(model, module)
        torch.compiler.reset()  # recompilations are counted for a function's code, which all modules share here
        self._function = torch.compile(lambda *tensors: function(*tensors), dynamic=True, fullgraph=True)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the compiled module, without gradients; the first call compiles it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler about itself
            return call(self._function, inputs)

    @classmethod
    def missing(cls) -> str:
        """Look for torch and the C++ compiler that it will call."""
        if reason := lacks(cls, "torch"):
            return reason
        compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler {compiler!r}: install one (apt install g++), or set CXX to yours"
        return ""

    @classmethod
    def version(cls) -> str:
        """Say torch's version."""
        return version_of("torch")
