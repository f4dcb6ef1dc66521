"""This folder as a registry: a file is a runtime, its name is the runtime's, and it holds one class for it."""

import importlib
import pkgutil

from fusion_onnx.verification.backends._backend import Backend

_PACKAGE = __name__.rpartition(".")[0]


def names() -> list[str]:
    """Return the runtimes' names, sorted, importing none of them."""
    package = importlib.import_module(_PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def get(name: str) -> type[Backend]:
    """Import one runtime's file, but none of its libraries, and return its class; a ValueError where there is none."""
    if name not in names():
        raise ValueError(f"there is no runtime {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{_PACKAGE}.{name}")
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, Backend) and cls.__module__ == module.__name__:
            return cls
    raise ImportError(f"{name}.py has no class derived from Backend")
