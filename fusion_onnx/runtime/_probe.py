"""Which providers really start here: each is started to see."""

import contextlib
import ctypes
import functools
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import _openvino, _ort
from ._openvino import OPENVINO
from ._wire import (
    DIMENSION_DIM_VALUE,
    GRAPH_INPUT,
    GRAPH_NAME,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    MODEL_GRAPH,
    MODEL_IR_VERSION,
    MODEL_OPSET_IMPORT,
    NODE_INPUT,
    NODE_OP_TYPE,
    NODE_OUTPUT,
    OPERATOR_SET_ID_VERSION,
    SHAPE_DIM,
    TENSOR_TYPE_ELEM_TYPE,
    TENSOR_TYPE_SHAPE,
    TYPE_TENSOR_TYPE,
    VALUE_INFO_NAME,
    VALUE_INFO_TYPE,
    encode,
)

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_DRIVER_FIX = "install the NVIDIA driver; in a container, start it with the GPUs (docker run --gpus all)"
_WHEEL_FIX = 'pip uninstall onnxruntime, then pip install "fusion-onnx[gpu]" (never both wheels)'
_LIBRARY_FIX = 'pip install "fusion-onnx[gpu]", which brings the CUDA and cuDNN libraries'
_FLOAT = 1  # ONNX's number of float32
TURNS = threading.RLock()
"""The lock of the thread that starts a provider, or makes a session or a graph for CUDA: a plug-in is registered once,
and CUDA gives no memory to other threads while one records a graph."""


class ProviderStatus(NamedTuple):
    """Whether one execution provider starts on this machine; if not, ``reason`` says why and ``fix`` what helps."""

    name: str
    alias: str
    starts: bool
    reason: str = ""
    fix: str = ""


def diagnose() -> list[ProviderStatus]:
    """Try every provider that the installed onnxruntime lists, and a plug-in beside it, by running a model of one node.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    names = _openvino.provider_names(_ort.load())
    if OPENVINO not in names and _openvino.is_installed():
        names.insert(names.index(CPU), OPENVINO)
    return [probe(name) for name in names]


def available_providers() -> list[str]:
    """Return the names of the providers that start here, in ONNX Runtime's order of preference.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    return [status.name for status in diagnose() if status.starts]


@functools.cache
def probe(name: str) -> ProviderStatus:
    """Start one provider, by ONNX Runtime's name of it, once in the life of the process."""
    with TURNS:
        return _start(name)


def _start(name: str) -> ProviderStatus:
    ort = _ort.load()
    failure = functools.partial(ProviderStatus, name, alias_of(name), False)
    plugin_devices: list[Any] = []
    if name == OPENVINO and _openvino.is_plugin(ort):
        if not _openvino.is_installed():
            return failure("its plug-in is not installed", _openvino.INSTALL)
        try:
            plugin_devices = _openvino.devices(ort)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            return failure(f"its plug-in cannot be registered: {first_line(error)}", f"{_openvino.INSTALL} --upgrade")
        if not plugin_devices:
            return failure(
                "its plug-in offers no CPU on this machine: it takes Intel's alone",
                "use the CPU provider, or run the file in OpenVINO itself, which takes any x86-64 or Arm CPU",
            )
    elif name not in ort.get_available_providers():
        return failure(
            f"the installed {ort.package_name} {ort.__version__} was built without it",
            _WHEEL_FIX if name in (CUDA, TENSORRT) else f"install a build of onnxruntime that holds {name}",
        )
    if name in (CUDA, TENSORRT) and (reason := _driver_problem()):
        return failure(reason, _DRIVER_FIX)
    missing = preload(ort) if name in (CUDA, TENSORRT) else []
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if name == CPU else "1")
    options.log_severity_level = 4
    try:
        with _silence(ort):
            if plugin_devices:
                options.add_provider_for_devices(plugin_devices, {})
            names = None if plugin_devices else [name]
            session = ort.InferenceSession(tiny_model(), options, providers=names, enable_fallback=0)
            starts = name in session.get_providers()
            if starts:
                session.run(None, {"x": np.ones(1, np.float32)})
        reason = "it was dropped in favour of the CPU"
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        starts, reason = False, first_line(error)
    if starts:
        return ProviderStatus(name, alias_of(name), True)
    if missing:
        return failure(f"libraries are missing: {', '.join(missing)}", _LIBRARY_FIX)
    if "fallback to CPU EP" in reason:
        return failure("it has no kernel for a plain addition", "nothing: it is not meant for models like these")
    fix = "install TensorRT (pip install tensorrt) beside CUDA" if name == TENSORRT else f"see the notes on {name} at "
    return failure(reason, fix if name == TENSORRT else fix + "https://onnxruntime.ai/docs/execution-providers/")


def alias_of(name: str) -> str:
    """Return the short name of a provider, such as "cuda" for "CUDAExecutionProvider"."""
    return name.removesuffix("ExecutionProvider").lower()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for use inside another error's."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def preload(ort: Any) -> list[str]:
    """Load the CUDA and cuDNN libraries that pip installed; return the names of those that do not load."""
    if not hasattr(ort, "preload_dlls"):
        return []
    messages: list[str] = []
    load = ort.preload_dlls
    if isinstance(load, types.FunctionType):  # it reports by print alone; sys.stdout belongs to all threads
        names = {**load.__globals__, "print": lambda *args: messages.append(" ".join(map(str, args)))}
        load = types.FunctionType(load.__code__, names, load.__name__, load.__defaults__, load.__closure__)
    with contextlib.suppress(Exception):
        load()
    text = "\n".join(messages)
    lines = [line.removeprefix("Failed to load ") for line in text.splitlines() if "Failed to load" in line]
    return [line.partition(": ")[0] for line in lines]


def _driver_problem() -> str:
    """Return why the CUDA driver does not start, "" where it does.

    The driver itself answers at once; ONNX Runtime loads 280 MB before it finds the driver missing.
    """
    if sys.platform == "darwin":
        return "macOS has no CUDA"
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver: {library} is not found"
    code = driver.cuInit(0)
    if code == 100:  # CUDA_ERROR_NO_DEVICE
        return "the NVIDIA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)"
    if code:
        return f"the NVIDIA driver does not start: cuInit answers {code}"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)"
    return ""


@contextlib.contextmanager
def _silence(ort: Any) -> Iterator[None]:
    """Keep ONNX Runtime's global logger quiet: a provider that fails to load writes to stderr through it alone."""
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # its documented default; what it was before cannot be asked


def tiny_model() -> bytes:
    """Return the model ``y = x + x``, float32[1], IR 8, opset 13."""
    shape = encode(SHAPE_DIM, encode(DIMENSION_DIM_VALUE, 1))
    tensor = encode(TENSOR_TYPE_ELEM_TYPE, _FLOAT) + encode(TENSOR_TYPE_SHAPE, shape)
    kind = encode(VALUE_INFO_TYPE, encode(TYPE_TENSOR_TYPE, tensor))
    node = encode(NODE_INPUT, "x") * 2 + encode(NODE_OUTPUT, "y") + encode(NODE_OP_TYPE, "Add")
    graph = encode(GRAPH_NODE, node) + encode(GRAPH_NAME, "g")
    graph += encode(GRAPH_INPUT, encode(VALUE_INFO_NAME, "x") + kind)
    graph += encode(GRAPH_OUTPUT, encode(VALUE_INFO_NAME, "y") + kind)
    opset = encode(MODEL_OPSET_IMPORT, encode(OPERATOR_SET_ID_VERSION, 13))
    return encode(MODEL_IR_VERSION, 8) + encode(MODEL_GRAPH, graph) + opset
