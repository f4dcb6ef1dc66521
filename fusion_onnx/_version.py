"""The version of this package."""

import functools


@functools.cache
def version() -> str:
    """Return the installed version, such as "0.1.0"; "0+unknown" in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError  # with its parsers of mail it takes longer than we do
    from importlib.metadata import version as installed

    try:
        return installed("fusion-onnx")
    except PackageNotFoundError:
        return "0+unknown"
