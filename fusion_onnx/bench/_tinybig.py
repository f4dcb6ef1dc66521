"""Import the fusions of tinyBIG, and nothing else of it.

tinyBIG's own front doors import its data loaders too, which ask for Python 3.12, torchtext and exact versions of both
numpy and torch. Its fusions need none of that: `pip install --no-deps tinybig` is enough.
"""

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_FOLDERS = ("tinybig", "tinybig.module", "tinybig.koala")
_MODULES = ("basic_fusion", "metric_fusion", "concatenation_fusion", "parameterized_concatenation_fusion")
_UNUSED = ("requests", "yaml")  # imported at the top of its modules, for downloads and configurations


@functools.cache
def classes() -> dict[str, Any]:
    """Return tinyBIG's fusions by name.

    Raises:
        ImportError: tinyBIG is not installed, or has changed.
    """
    if importlib.util.find_spec("tinybig") is None:
        raise ImportError("tinyBIG is not installed: pip install --no-deps tinybig")
    for name in _UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
    for name in _FOLDERS:
        if name not in sys.modules:
            _without_its_imports(name)
    modules = [importlib.import_module(f"tinybig.fusion.{name}") for name in _MODULES]
    return {name: value for module in modules for name, value in vars(module).items() if name.endswith("_fusion")}


def _without_its_imports(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{name} is no package in this version of tinyBIG")
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
