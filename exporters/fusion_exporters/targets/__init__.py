"""Where models are deployed: a file of this folder is a target, its name is the target's.

    targets.names()  # ['openvino', ...]
    targets.deploy("openvino", "model.onnx", "model.xml")  # writes model.xml and model.bin

A target is added by adding a file with a class derived from `Target`; its libraries are imported when it writes.
"""

import os
from pathlib import Path
from typing import Any

import onnx

from fusion_exporters.errors import ExportError
from fusion_exporters.targets._target import Target
from fusion_onnx import folder
from fusion_onnx.errors import suggestion

__all__ = ["Target", "deploy", "get", "names"]


def names() -> list[str]:
    """Return the targets' names, sorted, importing none of them."""
    return folder.names(__name__)


def get(name: str) -> type[Target]:
    """Import one target's file and return its class; raises ExportError, with the known names, where there is none."""
    if name not in names():
        raise ExportError(f"unknown target {name!r}.{suggestion(str(name), names())} Known are {', '.join(names())}.")
    return folder.entry(__name__, name, Target)


def deploy(name: str, model: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write a model in the form in which a target takes it, and return the files.

    Args:
        name: the target's, one of `names()`.
        model: an ONNX model: its file's path, its bytes, an onnx.ModelProto, or what `export` returns.
        path: the file to write; what belongs to it lies beside it.
        overwrite: whether files that exist may be replaced.

    Raises:
        ExportError: there is no such target, or it cannot take this model or this path.
        ImportError: the target needs a package that is not installed; the message says which `pip install` brings it.
        FileExistsError, FileNotFoundError: a file is there already; its folder is not. OSError: it cannot be written.
    """
    target = get(name)()
    try:
        return target.write(_load(model), Path(path), overwrite=overwrite)
    except ModuleNotFoundError as error:
        way = f": {target.install}" if target.install else "."
        raise ImportError(f"the target {name!r} needs {error.name}, which is not installed{way}") from error


def _load(model: Any) -> onnx.ModelProto:
    """Return a copy of a model with its weights, which may lie beside its file."""
    proto, path = getattr(model, "model", model), getattr(model, "path", None)
    if isinstance(proto, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        if path is not None:
            onnx.load_external_data_for_model(copy, str(Path(path).parent))
        return copy
    try:
        if isinstance(proto, bytes):
            return onnx.load_model_from_string(proto)
        if isinstance(proto, (str, os.PathLike)):
            return onnx.load(os.fspath(proto))
    except OSError:
        raise
    except Exception as error:  # protobuf's and onnx's own, which share no class
        raise ExportError(f"the model is no ONNX file: {error}") from error
    raise ExportError(
        f"deploy takes a path, bytes, an onnx.ModelProto or what export returns; got {type(model).__name__}."
    )
