"""One strategy, one file: `fusions.median` is the module, `fusions.MedianFusion` the class. Imported when asked for."""

import importlib
from typing import Any

from fusion_onnx.fusions import _folder


def __getattr__(name: str) -> Any:
    if name in _folder.names():
        return importlib.import_module(f"{__name__}.{name}")
    if name.endswith("Fusion"):
        for strategy in _folder.names():
            if strategy.replace("_", "") + "fusion" == name.lower():
                return _folder.load(strategy)
    raise AttributeError(f"module {__name__!r} has no strategy {name!r}; it has {', '.join(_folder.names())}")


def __dir__() -> list[str]:
    return _folder.names()
