"""The contract's one exception, and the words that errors share; light enough to import without torch."""

from collections.abc import Iterable

_EXTRA = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
}


class FusionError(ValueError):
    """A breach of the contract: the message names the rule, the value that broke it, and the fix."""


def explained(error: ModuleNotFoundError, what: str) -> ImportError:
    """Return the error to raise instead: it says what needs the library, and the command that brings it."""
    extra = _EXTRA.get((error.name or "").partition(".")[0])
    if extra is None:
        return error
    return ImportError(f"{what} needs {error.name}, which is not installed: pip install 'fusion-onnx[{extra}]'")


def suggestion(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return " Did you mean 'x'?" for the known names nearest to one that is unknown; empty where none is near."""
    import difflib  # errors alone need it

    near = difflib.get_close_matches(name, list(known), most)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
