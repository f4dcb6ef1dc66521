"""This folder as a registry: a file is a strategy, its name is the strategy's, and it holds the class of that name."""

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from fusion_onnx.errors import explained

if TYPE_CHECKING:
    from fusion_onnx.contract import Fusion


def names() -> list[str]:
    """Return the strategies' names, sorted, importing none of them."""
    import fusion_onnx.fusions as package

    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


@functools.cache
def load(name: str) -> "type[Fusion]":
    """Import one strategy's file and return its class."""
    try:
        from fusion_onnx.contract import Fusion

        module = importlib.import_module(f"fusion_onnx.fusions.{name}")
    except ModuleNotFoundError as error:
        raise explained(error, f"the strategy {name!r}") from error
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, Fusion) and cls.strategy() == name:
            return cls
    raise ImportError(
        f"fusions/{name}.py has no strategy of that name: a class whose snake case is {name}, or {name}_fusion."
    )
