"""The runtimes that an exported model can be tried in, one file each: the folder is the registry.

>>> with start("onnxruntime_cpu") as runtime:
...     runtime.load(model_bytes)
...     [y] = runtime.run([x1, x2])

A runtime is added by adding a file: a class derived from `Backend`, under the file's name. Its libraries are imported
where it runs, which for most is a child process: a crash or a hang there is a `BackendError` here.
"""

from fusion_onnx.verification.backends._backend import Backend, BackendError, MissingBackend
from fusion_onnx.verification.backends._folder import get, names
from fusion_onnx.verification.backends._runner import Handle, start

__all__ = ["Backend", "BackendError", "Handle", "MissingBackend", "get", "names", "start"]
