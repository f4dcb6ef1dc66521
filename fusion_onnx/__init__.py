"""Fusions of tensors: defined once in PyTorch, exported as named ONNX functions, run in ONNX Runtime, proven equal.

    >>> import fusion_onnx
    >>> fusion_onnx.names()                                             # the strategies
    >>> fusion = fusion_onnx.create("median", dims=[64, 64, 64])        # a torch.nn.Module
    >>> fusion_onnx.export(fusion, ([x1, x2, x3],), "median.onnx")      # one named node, its body inside, verified
    >>> fusion_onnx.Session("median.onnx").run(x1, x2, x3)              # needs neither torch nor onnx

Importing this package brings neither torch, onnx nor onnxruntime; each comes in when what needs it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fusion_onnx import _moved
from fusion_onnx.errors import FusionError, explained
from fusion_onnx.file_format import version

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from fusion_exporters import ExportError as ExportError
    from fusion_exporters import ExportResult as ExportResult
    from fusion_exporters import VerificationError as VerificationError
    from fusion_exporters import attach as attach
    from fusion_exporters import export as export
    from fusion_exporters import translations as translations
    from fusion_exporters import tune as tune
    from fusion_onnx import fusions as fusions
    from fusion_onnx import runtime as runtime
    from fusion_onnx import testing as testing
    from fusion_onnx import tinybig as tinybig
    from fusion_onnx.config import from_config as from_config
    from fusion_onnx.config import to_config as to_config
    from fusion_onnx.contract import Case as Case
    from fusion_onnx.contract import Fusion as Fusion
    from fusion_onnx.contract import Fusion as fusion  # noqa: F401
    from fusion_onnx.contract import function as function
    from fusion_onnx.contract.callables import register_function as register_function
    from fusion_onnx.contract.form import form as form
    from fusion_onnx.contract.layer import FusionLayer as FusionLayer
    from fusion_onnx.registry import create as create
    from fusion_onnx.registry import get as get
    from fusion_onnx.registry import names as names
    from fusion_onnx.registry import register as register
    from fusion_onnx.runtime import InputError as InputError
    from fusion_onnx.runtime import Session as Session
    from fusion_onnx.runtime import SessionError as SessionError
    from fusion_onnx.testing import assert_parity as assert_parity
    from fusion_onnx.verification import Verdict as Verdict
    from fusion_onnx.verification import verify as verify
    from fusion_onnx.verification.locate import locate as locate

    __version__: str

_HOME = {
    "Case": "fusion_onnx.contract",
    "ExportError": "fusion_exporters",
    "ExportResult": "fusion_exporters",
    "Fusion": "fusion_onnx.contract",
    "FusionLayer": "fusion_onnx.contract.layer",
    "InputError": "fusion_onnx.runtime",
    "Session": "fusion_onnx.runtime",
    "SessionError": "fusion_onnx.runtime",
    "Verdict": "fusion_onnx.verification",
    "VerificationError": "fusion_exporters",
    "assert_parity": "fusion_onnx.testing",
    "attach": "fusion_exporters",
    "create": "fusion_onnx.registry",
    "export": "fusion_exporters",
    "form": "fusion_onnx.contract.form",
    "from_config": "fusion_onnx.config",
    "function": "fusion_onnx.contract",
    "fusion": "fusion_onnx.contract",
    "get": "fusion_onnx.registry",
    "locate": "fusion_onnx.verification",
    "names": "fusion_onnx.registry",
    "register": "fusion_onnx.registry",
    "register_function": "fusion_onnx.contract.callables",
    "to_config": "fusion_onnx.config",
    "translations": "fusion_exporters",
    "tune": "fusion_exporters",
    "verify": "fusion_onnx.verification",
}
_MODULES = ("fusions", "runtime", "testing", "tinybig")

_moved.install()

__all__ = [
    "FusionError",
    "__version__",
    *_HOME,
    *_MODULES,
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version()
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), "Fusion" if name == "fusion" else name)
    except ModuleNotFoundError as error:
        raise explained(error, f"fusion_onnx.{name}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
