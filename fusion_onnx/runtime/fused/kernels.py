"""The compiled library of kernels: whether it can be used here, and a session's operators in it."""

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

from .program import Program, compile_function, why_no_program

PATH = os.path.join(os.path.dirname(__file__), "entrywise.so")  # pathlib takes as long to import as all of this
REFUSAL = "fused kernel: "
"""How the message of a kernel begins that refuses a call, because only the body is for its shapes: operator.c."""
_OLDEST = (1, 17)
_lock = threading.Lock()
_registered: dict[tuple[Program, ...], "_OpLibrary"] = {}


class _CProgram(ctypes.Structure):
    """`program` of entrywise.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("inputs", ctypes.c_int32),
        ("tensors", ctypes.c_int32),
        ("element", ctypes.c_int32),
        ("registers", ctypes.c_int32),
        ("works", ctypes.c_int32),
        ("length", ctypes.c_int32),
        ("value_count", ctypes.c_int32),
        ("constant_count", ctypes.c_int32),
        ("code", ctypes.POINTER(ctypes.c_int32)),
        ("parts", ctypes.POINTER(ctypes.c_int32)),
        ("constants", ctypes.POINTER(ctypes.c_double)),
    )


class _OpLibrary(ctypes.Structure):
    """`op_library` of operator.c."""

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
    except (OSError, AttributeError) as error:  # the second where it was compiled from other sources
        return f"{os.path.basename(PATH)} cannot be loaded: {error}"
    return ""


def has_kernel(function: bytes, vectors: Iterable[int]) -> bool:
    """Return whether there is a kernel for a serialized FunctionProto; vectors: which of its inputs have one axis."""
    return compile_function(Message(function), vectors) is not None


def why_no_kernel(function: bytes, vectors: Iterable[int]) -> str:
    """Return why there is no kernel for a serialized FunctionProto, such as "there is no instruction for Exp"; else "".

    vectors: which of its inputs have one axis.
    """
    return why_no_program(Message(function), vectors)


def programs(source: str | bytes) -> tuple[Program, ...]:
    """Return the programs of a model's functions that are entrywise; none where the file is malformed."""
    try:
        candidates = [compile_function(body, vectors) for body, vectors in function_calls(source, DOMAIN)]
    except WireError:
        return ()
    return tuple(program for program in candidates if program is not None)


def register(ort_options: Any, programs: tuple[Program, ...]) -> None:
    """Give the next session made with these options operators for the programs."""
    with _lock:
        if programs not in _registered:
            _registered[programs] = _declare(programs)
        _library().fusion_onnx_select(ctypes.byref(_registered[programs]))
        ort_options.register_custom_ops_library(str(PATH))


def instructions(level: int = -1) -> int:
    """Return whether AVX2 is used; level 0 turns it off, and 1 on, where the processor has it."""
    return int(_library().fusion_onnx_instructions(level))


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(PATH))
    library.fusion_onnx_operator.restype = ctypes.c_void_p
    library.fusion_onnx_select.restype = None
    return library


def _declare(programs: tuple[Program, ...]) -> _OpLibrary:
    operators = (ctypes.c_void_p * len(programs))(*map(_operator, programs))
    return _OpLibrary(None, DOMAIN.encode(), len(programs), operators)


@functools.cache
def _operator(program: Program) -> int:
    constant_count = len(program.constants) // ctypes.sizeof(ctypes.c_double)
    parts = [number for part in program.parts for number in part]
    c_program = _CProgram(
        name=program.name.encode(),
        inputs=program.inputs,
        tensors=program.tensors,
        element=program.element,
        registers=program.registers,
        works=program.works,
        length=len(program.code),
        value_count=len(program.parts) + constant_count,
        constant_count=constant_count,
        code=(ctypes.c_int32 * len(program.code))(*program.code),
        parts=(ctypes.c_int32 * len(parts))(*parts),
        constants=(ctypes.c_double * constant_count).from_buffer_copy(program.constants),
    )
    address = _library().fusion_onnx_operator(ctypes.byref(c_program))
    if not address:
        raise MemoryError("no memory for a fused operator")
    return int(address)
