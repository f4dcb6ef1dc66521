"""The command line, `fusion-onnx`: a file of this folder holds a group of commands, and is found by being here.

Every file is imported at start-up, so none imports anything heavy before a command of it runs.

Exit codes: 0 fine, 1 a verdict failed, 2 the request was wrong or cannot be met.
"""

import importlib

from fusion_onnx import folder
from fusion_onnx.cli.app import app, main

__all__ = ["app", "main"]

for _name in folder.names(__name__):
    importlib.import_module(f"{__name__}.{_name}")
