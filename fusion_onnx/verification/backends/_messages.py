"""A runtime's own error, made fit to print."""

import re

_TRACE = re.compile(r"\s*(Stack backtrace:|Traceback \(most recent|stack trace:|\n\s+at ).*", re.DOTALL | re.IGNORECASE)
_SOURCE = re.compile(r"""[^\s'"(]*[/\\]([\w.+-]+\.(?:cc?|cpp|h|hpp|rs|py|so|dll|onnx|c?m?js|wasm)\b)""")
_LONGEST = 300


def short_message(error: BaseException | str) -> str:
    """Return an error's text on one line: no stack trace, no folder of a source file, at most 300 characters."""
    text = _TRACE.sub("", str(error).strip())
    text = " ".join(_SOURCE.sub(r"\1", text).split())
    if isinstance(error, BaseException):
        plain = type(error).__module__ == "builtins" and not isinstance(error, RuntimeError)
        text = f"{type(error).__name__}: {text}" if plain and text else text or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
