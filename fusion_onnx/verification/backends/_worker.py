"""The child process in which one runtime runs: reads frames, answers each, and ends when its input does."""

import json
import os
import sys
from typing import IO, Any

from fusion_onnx.verification.backends import _protocol
from fusion_onnx.verification.backends._backend import Backend
from fusion_onnx.verification.backends._folder import get
from fusion_onnx.verification.backends._inlining import inlined
from fusion_onnx.verification.backends._messages import short_message


def command(name: str) -> list[str]:
    """Return the command that starts this process: it sees the same modules, and the same folders of runtimes."""
    import fusion_onnx.verification.backends as package

    code = (
        "import json, sys; sys.path[:], folders, name = json.loads(sys.argv[1])\n"
        "import fusion_onnx.verification.backends as package; package.__path__[:] = folders\n"
        "from fusion_onnx.verification.backends._worker import main; main(name)"
    )
    return [sys.executable, "-c", code, json.dumps([sys.path, list(package.__path__), name])]


def main(name: str) -> None:
    """Serve until the parent closes the pipe."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a runtime prints, in whatever language, must not land among the answers
    _protocol.send(answers, {})
    _serve(get(name), requests, answers)
    os._exit(0)  # some runtimes crash when they are taken apart


def _serve(cls: type[Backend], requests: IO[bytes], answers: IO[bytes]) -> None:
    loaded: Backend | None = None
    while True:
        try:
            header, arrays, blob = _protocol.receive(requests)
        except EOFError:
            return
        outputs: list[Any] = []
        error = ""
        try:
            if header["do"] == "load":
                loaded = None
                loaded = cls(inlined(blob) if cls.inlined else blob)
            elif loaded is not None:
                outputs = loaded.run(arrays)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as caught:  # a panic of a runtime written in Rust is no Exception
            error = short_message(caught) or "it failed without a word"
        _protocol.send(answers, {"error": error}, outputs)
