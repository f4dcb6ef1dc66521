"""Old paths of modules: each still imports for one release, with a DeprecationWarning that names the new path."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "fusion_exporters.attention": "fusion_exporters.translation.attention",
    "fusion_exporters.choice": "fusion_exporters.forms.choice",
    "fusion_exporters.costs": "fusion_exporters.forms.costs",
    "fusion_exporters.doubles": "fusion_exporters.translation.doubles",
    "fusion_exporters.inputs": "fusion_exporters.graph_inputs",
    "fusion_exporters.operators": "fusion_exporters.translation.operators",
    "fusion_exporters.reasons": "fusion_exporters.translation.reasons",
    "fusion_exporters.signature": "fusion_exporters.graph_inputs",
    "fusion_exporters.tracing": "fusion_exporters.translation.tracing",
    "fusion_onnx.arithmetic": "fusion_onnx.contract.rounding",
    "fusion_onnx.assertion": "fusion_onnx.testing.parity",
    "fusion_onnx.base": "fusion_onnx.contract.function",
    "fusion_onnx.extras": "fusion_onnx.errors",
    "fusion_onnx.forms": "fusion_onnx.contract.form",
    "fusion_onnx.functions": "fusion_onnx.contract.callables",
    "fusion_onnx.inspection": "fusion_onnx.cli.inspection",
    "fusion_onnx.interruption": "fusion_onnx.cli.interruption",
    "fusion_onnx.layer": "fusion_onnx.contract.layer",
    "fusion_onnx.parity": "fusion_onnx.testing.matrix",
    "fusion_onnx.pytest_plugin": "fusion_onnx.testing.pytest_plugin",
    "fusion_onnx.target": "fusion_onnx.cli.module",
    "fusion_onnx.torch_op": "fusion_onnx.contract.torch_op",
    "fusion_onnx.verification.declared": "fusion_onnx.verification.shapes",
    "fusion_onnx.verification.eager": "fusion_onnx.verification.verify",
    "fusion_onnx.verification.locate.recording": "fusion_onnx.verification.trace",
    "fusion_onnx.verification.repeatable": "fusion_onnx.verification.eval_mode",
    "fusion_onnx.verification.watching": "fusion_onnx.verification.operator_mode",
}
"""The new path of each module that moved; that of a package stands for its modules too."""


class _Finder:
    """Finds modules under their old paths; it comes before Python's own finders, which know a package's folder alone.

    `import fusion_onnx` installs it, and so does `import fusion_exporters`, which imports fusion_onnx.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        new = _new_path(name)
        if new is None:
            return None
        loader: Any = _Loader(new)  # a loader by its methods: importlib.abc, which has the class, is slow to import
        return ModuleSpec(name, loader)


class _Loader:
    """Puts the module of the new path in the place of the old one: both paths lead to one module."""

    def __init__(self, new: str) -> None:
        self._new = new

    def create_module(self, spec: ModuleSpec) -> None:
        """Take Python's empty module, to be replaced."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        text = f"{old} is now {self._new}; the old path goes with the next release."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(self._new)


def _new_path(name: str) -> str | None:
    """Return the new path of a module that moved, by itself or with its package; None for any other."""
    package, rest = name, ""
    while package not in MOVED:
        package, _, last = package.rpartition(".")
        if not package:
            return None
        rest = f".{last}{rest}"
    return MOVED[package] + rest


def install() -> None:
    """Make the old paths importable; once is enough."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
