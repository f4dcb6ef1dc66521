"""This folder as a registry: a file is a runtime, its name is the runtime's, and it holds one class for it."""

from fusion_onnx import folder
from fusion_onnx.verification.backends._backend import Backend

_PACKAGE = __name__.rpartition(".")[0]


def names() -> list[str]:
    """Return the runtimes' names, sorted, importing none of them."""
    return folder.names(_PACKAGE)


def get(name: str) -> type[Backend]:
    """Import one runtime's file, but none of its libraries, and return its class; a ValueError where there is none."""
    if name not in names():
        raise ValueError(f"there is no runtime {name!r}; there are {', '.join(names())}")
    return folder.entry(_PACKAGE, name, Backend)
