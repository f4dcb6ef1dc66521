"""What a target gives: one class, derived from `Target`, in a file of this folder."""

import abc
from pathlib import Path
from typing import ClassVar

import onnx


class Target(abc.ABC):
    """A place in which models are deployed, and the form in which it takes them."""

    title: ClassVar[str]
    """What a person calls it, such as "OpenVINO IR"."""
    install: ClassVar[str] = ""
    """The command that brings the library it needs, such as "pip install 'fusion-onnx[openvino]'"."""

    @abc.abstractmethod
    def write(self, model: onnx.ModelProto, path: Path, *, overwrite: bool) -> tuple[Path, ...]:
        """Write a model, which holds its weights and may be changed, and return the files, the one to load first.

        Raises ExportError where the target cannot take the model or the path, and OSError where a file cannot be
        written, or exists and `overwrite` is false; then nothing is written. It leaves ModuleNotFoundError to `deploy`.
        """
