"""What stands for a model, for type checkers and editors; nothing imports it at run time."""

import os
from pathlib import Path
from typing import Any, Protocol, TypeAlias


class Serializable(Protocol):
    """An onnx.ModelProto."""

    def SerializeToString(self) -> bytes:
        """Return the file's bytes."""


class Exported(Protocol):
    """What `fusion_onnx.export` returns."""

    @property
    def path(self) -> Path | None:
        """Where the file is; None where the model is kept in memory."""

    @property
    def model(self) -> Any:
        """The onnx.ModelProto."""


ModelLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Serializable | Exported
