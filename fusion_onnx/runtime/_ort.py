"""The one place that imports onnxruntime."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

_INSTALL = """install one of: pip install "fusion-onnx[cpu]" or pip install "fusion-onnx[gpu]", never both"""


def load() -> Any:
    """Import onnxruntime, with its telemetry off unless the user set ORT_DISABLE_TELEMETRY.

    Telemetry is on by default in 1.31: it starts a thread, writes below the user's cache, and makes a forked child
    hang at its exit. The variable counts only before the first import; a module that the user imported earlier stays
    as it is.

    Raises:
        ImportError: onnxruntime is missing or broken.
    """
    if "onnxruntime" not in sys.modules:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        module = importlib.import_module("onnxruntime")  # waits for a thread that is importing it
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError(f"onnxruntime is not installed; {_INSTALL}", name="onnxruntime") from error
    if not hasattr(module, "InferenceSession"):
        # Uninstalling one of two wheels takes shared files of the other with it and leaves an empty folder behind.
        raise ImportError(
            f"onnxruntime is installed in part (no InferenceSession in {getattr(module, '__path__', module)}); "
            f"pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL}",
            name="onnxruntime",
        )
    return module


def set_threads(options: Any, count: int) -> None:
    """Say how many threads share an operator; where they are as many as the cores, each is pinned to one.

    ONNX Runtime pins them itself where it chooses their number. Without that a thread that wakes up shares the core of
    the caller for some milliseconds, while another core idles.
    """
    options.intra_op_num_threads = count
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if 1 < count == len(cores):
        affinities = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)


def runner(session: Any) -> Callable[[list[str], dict[str, Any], None], list[Any]]:
    """Return what runs a session: `InferenceSession.run`, or its inner half, for callers who check what they feed.

    The outer half compares names and looks for OrtValues, in Python, at each call: 2 µs that a small network notices.
    """
    run = getattr(_inner(session), "run", session.run)
    return run  # type: ignore[no-any-return]


def bound_runner(session: Any, binding: Any, options: Any = None) -> Callable[[], Any]:
    """Return what runs a session on a binding made for it: without the outer half, as `runner`."""
    inner, bound = getattr(_inner(session), "run_with_iobinding", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return functools.partial(session.run_with_iobinding, binding, options)
    return functools.partial(inner, bound, options)


def _inner(session: Any) -> Any:
    """Return the session in C++ behind an InferenceSession; None where there is none, or the outer half has a part."""
    inner = getattr(session, "_sess", None)
    captures = getattr(inner, "is_webgpu_graph_capture_enabled", bool)()
    return None if captures else inner
