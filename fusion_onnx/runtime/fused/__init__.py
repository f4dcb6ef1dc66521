"""Fused kernels: a fusion that works entry by entry as one pass over memory, in place of one pass for each operator.

ONNX Runtime's CPU provider does not fuse operators. Here the body of an entrywise function is made into a program
(program.py) for an operator of its own (operator.c, loops.c), which ONNX Runtime runs instead of the body, on its
threads. The results are the body's, bit for bit: NaN's payload and the sign of a zero aside.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Iterable
from typing import Any

from fusion_onnx.file_format import DOMAIN
from fusion_onnx.runtime import _ort
from fusion_onnx.runtime._model_file import function_calls
from fusion_onnx.runtime._wire import Message, WireError

from .program import Program, compile_function

__all__ = ["PATH", "REFUSAL", "Program", "has_kernel", "instructions", "programs", "register", "why_not_fused"]

PATH = os.path.join(os.path.dirname(__file__), "entrywise.so")  # pathlib takes as long to import as all of this
REFUSAL = "fused kernel: "
"""How the message of a kernel begins that is called for shapes which only the body is for: operator.c."""
_OLDEST = (1, 17)
_lock = threading.Lock()
_registered: dict[tuple[Program, ...], "_OpLibrary"] = {}


class _OpLibrary(ctypes.Structure):
    """`entry` of operator.c."""

    _fields_ = (
        ("domain", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("count", ctypes.c_size_t),
        ("operators", ctypes.POINTER(ctypes.c_void_p)),
    )


def why_not_fused() -> str:
    """Return why sessions here run no fused kernels, "" where they do.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    ort = _ort.load()
    if not os.path.exists(PATH):
        return "this installation has no compiled kernels; install from source where there is a C compiler"
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < _OLDEST:
        return f"onnxruntime {ort.__version__} is older than {'.'.join(map(str, _OLDEST))}"
    try:
        _library()
    except OSError as error:
        return f"{os.path.basename(PATH)} cannot be loaded: {error}"
    return ""


def has_kernel(function: bytes, vectors: Iterable[int]) -> bool:
    """Whether there is a kernel for a serialized FunctionProto; vectors: which of its inputs have one axis."""
    return compile_function(Message(function), vectors) is not None


def programs(source: str | bytes) -> tuple[Program, ...]:
    """Return the programs of a model's functions that are entrywise; none where the file is malformed."""
    try:
        found = [compile_function(body, vectors) for body, vectors in function_calls(source, DOMAIN)]
    except WireError:
        return ()
    return tuple(program for program in found if program is not None)


def register(ort_options: Any, wanted: tuple[Program, ...]) -> None:
    """Give the next session made with these options operators for the programs."""
    with _lock:
        if wanted not in _registered:
            _registered[wanted] = _declare(wanted)
        _library().fusion_onnx_enter(ctypes.byref(_registered[wanted]))
        ort_options.register_custom_ops_library(str(PATH))


def instructions(wanted: int = -1) -> int:
    """Return whether AVX2 is used; 0 and 1 set it, where the processor has it."""
    return int(_library().fusion_onnx_instructions(wanted))


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(PATH))
    library.fusion_onnx_operator.restype = ctypes.c_void_p
    library.fusion_onnx_enter.restype = None
    return library


def _declare(wanted: tuple[Program, ...]) -> _OpLibrary:
    operators = (ctypes.c_void_p * len(wanted))(*map(_operator, wanted))
    return _OpLibrary(None, DOMAIN.encode(), len(wanted), operators)


@functools.cache
def _operator(program: Program) -> int:
    count = len(program.constants) // ctypes.sizeof(ctypes.c_double)
    values = len(program.parts) + count
    facts = [program.inputs, program.tensors, program.element, program.registers]
    facts += [len(program.code), program.works, values, count]
    parts = [number for part in program.parts for number in part]
    made = _library().fusion_onnx_operator(
        program.name.encode(),
        (ctypes.c_int32 * len(facts))(*facts),
        (ctypes.c_int32 * len(program.code))(*program.code),
        (ctypes.c_int32 * len(parts))(*parts),
        (ctypes.c_double * count).from_buffer_copy(program.constants),
    )
    if not made:
        raise MemoryError("no memory for a fused operator")
    return int(made)
