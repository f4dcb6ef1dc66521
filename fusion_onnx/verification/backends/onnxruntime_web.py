"""ONNX Runtime compiled to WebAssembly, as browsers run it; here in Node."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_onnx.verification.backends import _protocol
from fusion_onnx.verification.backends._backend import Array, Backend, BackendError

_PACKAGE = "onnxruntime-web"
_DRIVER = Path(__file__).with_suffix(".cjs")
_PROCESS: list["subprocess.Popen[bytes]"] = []


class OnnxRuntimeWeb(Backend):
    """npm's onnxruntime-web in one Node process, which stays for all models.

    The package is looked for in FUSION_ONNX_NODE_MODULES, then in node_modules of the working folder and its parents.
    """

    title = "ONNX Runtime Web (WebAssembly, in Node)"
    install = "npm install onnxruntime-web"
    bitwise = True

    def __init__(self, model: bytes, module: Any = None) -> None:
        self._ask({"do": "load"}, (), model)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Have Node run the session."""
        return self._ask({"do": "run"}, inputs, b"")

    def _ask(self, request: dict[str, Any], arrays: Sequence[Array], blob: bytes) -> list[Array]:
        process = _node()
        assert process.stdin is not None and process.stdout is not None
        try:
            _protocol.send(process.stdin, request, arrays, blob)
            header, outputs, _ = _protocol.receive(process.stdout)
        except (EOFError, OSError):
            _PROCESS.clear()
            raise BackendError(f"node ended with exit code {process.wait()}") from None
        if header.get("error"):
            raise BackendError(header["error"])
        return outputs

    @classmethod
    def missing(cls) -> str:
        """Look for node and the package."""
        if shutil.which("node") is None:
            return f"there is no node on the PATH: install Node.js (apt install nodejs npm), then {cls.install}"
        if _folder() is None:
            return (
                f"{_PACKAGE} is in no node_modules of the working folder or its parents: {cls.install}, "
                "or name the folder node_modules in FUSION_ONNX_NODE_MODULES"
            )
        return ""

    @classmethod
    def version(cls) -> str:
        """Say the package's version."""
        folder = _folder()
        return "" if folder is None else str(json.loads((folder / "package.json").read_text())["version"])


def _folder() -> Path | None:
    here = Path.cwd()
    named = os.environ.get("FUSION_ONNX_NODE_MODULES")
    places = ([Path(named)] if named else []) + [parent / "node_modules" for parent in (here, *here.parents)]
    return next((place.resolve() / _PACKAGE for place in places if (place / _PACKAGE / "package.json").is_file()), None)


def _node() -> "subprocess.Popen[bytes]":
    if not _PROCESS:
        command = ["node", str(_DRIVER), str(_folder())]
        _PROCESS.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    return _PROCESS[0]
