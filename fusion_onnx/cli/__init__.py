"""The command line, `fusion-onnx`."""

from fusion_onnx.cli.app import app, main

__all__ = ["app", "main"]
