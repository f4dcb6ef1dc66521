"""Element types and the description of one model input or output."""

from typing import NamedTuple

# TensorProto.DataType number -> (this package's name: numpy's where numpy has the type, ONNX Runtime's name)
_TYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "float"),
    2: ("uint8", "uint8"),
    3: ("int8", "int8"),
    4: ("uint16", "uint16"),
    5: ("int16", "int16"),
    6: ("int32", "int32"),
    7: ("int64", "int64"),
    8: ("string", "string"),
    9: ("bool", "bool"),
    10: ("float16", "float16"),
    11: ("float64", "double"),
    12: ("uint32", "uint32"),
    13: ("uint64", "uint64"),
    14: ("complex64", "complex64"),
    15: ("complex128", "complex128"),
    16: ("bfloat16", "bfloat16"),
    17: ("float8_e4m3fn", "float8e4m3fn"),
    18: ("float8_e4m3fnuz", "float8e4m3fnuz"),
    19: ("float8_e5m2", "float8e5m2"),
    20: ("float8_e5m2fnuz", "float8e5m2fnuz"),
    21: ("uint4", "uint4"),
    22: ("int4", "int4"),
    23: ("float4_e2m1", "float4e2m1"),
}
_FROM_ORT = {f"tensor({ort})": name for name, ort in _TYPES.values()}
NUMPY_DTYPES = frozenset(_TYPES[n][0] for n in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15))
"""The dtypes that a numpy array holds as they are."""


def dtype_of_onnx(elem_type: int) -> str:
    """Return the dtype's name for a TensorProto.DataType number."""
    return _TYPES[elem_type][0] if elem_type in _TYPES else f"elem_type {elem_type}"


def dtype_of_ort(ort_type: str) -> str:
    """Return the dtype's name for ONNX Runtime's ``tensor(float)``; other types, such as sequences, keep ORT's text."""
    return _FROM_ORT.get(ort_type, ort_type)


class TensorInfo(NamedTuple):
    """One input or output of a model.

    ``dtype`` is numpy's name, or "bfloat16", "string", ... where numpy has none. ``shape`` holds an int for a fixed
    size, a str for a symbol such as "batch", None for a size without a name; it is None if the rank is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """Such as ``x1: float32[batch, 256]``."""
        if self.shape is None:
            return f"{self.name}: {self.dtype}[...]"
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
