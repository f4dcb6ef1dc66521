"""This folder as a registry: a file is a strategy, its name is the strategy's, and it holds the class of that name."""

import functools
from typing import TYPE_CHECKING

from fusion_onnx import folder
from fusion_onnx.errors import explained

if TYPE_CHECKING:
    from fusion_onnx.contract import Fusion

_PACKAGE = "fusion_onnx.fusions"


def names() -> list[str]:
    """Return the strategies' names, sorted, importing none of them."""
    return folder.names(_PACKAGE)


@functools.cache
def load(name: str) -> "type[Fusion]":
    """Import one strategy's file and return its class."""
    try:
        from fusion_onnx.contract import Fusion

        for cls in folder.classes(_PACKAGE, name):
            if issubclass(cls, Fusion) and cls.strategy() == name:
                return cls
    except ModuleNotFoundError as error:
        raise explained(error, f"the strategy {name!r}") from error
    raise ImportError(
        f"fusions/{name}.py has no strategy of that name: a class whose snake case is {name}, or {name}_fusion."
    )
