"""tract: Sonos' inference engine in Rust."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from fusion_onnx.verification.backends._backend import Array, Backend, lacks, version_of


class Tract(Backend):
    """tract's optimised CPU plan."""

    title = "tract"
    install = "pip install 'fusion-onnx[tract]'"
    inlined = True

    def __init__(self, model: bytes, module: Any = None) -> None:
        import tract

        with tempfile.TemporaryDirectory() as folder:  # it loads files alone
            path = os.path.join(folder, "model.onnx")
            with open(path, "wb") as file:
                file.write(model)
            self._runnable = tract.onnx().load(path).into_model().into_runnable()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the plan."""
        return [output.to_numpy() for output in self._runnable.run(list(inputs))]

    @classmethod
    def missing(cls) -> str:
        """Look for tract."""
        return lacks(cls, "tract")

    @classmethod
    def version(cls) -> str:
        """Say tract's version."""
        return version_of("tract")
