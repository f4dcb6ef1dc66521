"""A library that is not installed: which `pip install` brings it."""

_EXTRA = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "openvino": "openvino",
}


def explained(error: ModuleNotFoundError, what: str) -> ImportError:
    """Return the error to raise instead: it says what needs the library, and the command that brings it."""
    extra = _EXTRA.get((error.name or "").partition(".")[0])
    if extra is None:
        return error
    return ImportError(f"{what} needs {error.name}, which is not installed: pip install 'fusion-onnx[{extra}]'")
