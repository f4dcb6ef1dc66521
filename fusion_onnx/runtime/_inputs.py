"""From what the caller gives to what ONNX Runtime may read: names, dtypes, memory layout, shapes.

ONNX Runtime reads an input's memory in place. A contiguous native array is handed over as it is; anything else is
copied once here: ONNX Runtime reads big-endian numbers as garbage, and copies strided arrays far slower than numpy.
It also broadcasts 2 rows against 1 in silence where the model calls both sizes "batch", so shapes are checked first.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from . import _torch
from ._errors import InputError
from ._types import NUMPY_DTYPES, TensorInfo

_DLPACK_HOST = (1, 3)  # kDLCPU and kDLCUDAHost


def arrange(infos: Sequence[TensorInfo], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Put inputs by position and by name into the model's order.

    One list or tuple as the only positional argument is the inputs; one mapping is inputs by name.

    Raises:
        InputError: one is missing, unknown, given twice, or there are too many.
    """
    if not args and len(kwargs) == len(infos) and all(info.name in kwargs for info in infos):
        return [kwargs[info.name] for info in infos]
    hint = ""
    if len(args) == 2 and isinstance(args[1], Mapping):  # as ONNX Runtime's own run has it
        if args[0] is not None:
            raise InputError("run gives all outputs: run(mapping), not run(names, mapping)")
        args = args[1:]
    if len(args) == 1 and isinstance(args[0], Mapping):
        _refuse_twice(args[0].keys() & kwargs.keys(), "in the mapping and by keyword")
        kwargs = {**args[0], **kwargs}
        args = []
    elif len(args) == 1 and isinstance(args[0], list | tuple):
        args, hint = args[0], " (a single list is read as the list of inputs; to give a list as data, wrap it)"
    if len(args) > len(infos):
        raise InputError(f"got {len(args)} inputs by position, {_takes(infos)}{hint}")
    values = {info.name: value for info, value in zip(infos, args, strict=False)}
    _refuse_twice(values.keys() & kwargs.keys(), "by position and by name")
    names = [info.name for info in infos]
    for name in kwargs:
        if name not in names:
            import difflib  # for the message alone

            matches = difflib.get_close_matches(str(name), names, 1)
            suggestion = f"; did you mean {matches[0]!r}?" if matches else ""
            raise InputError(f"{name!r} is no input{suggestion}; {_takes(infos)}")
    values.update(kwargs)
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}; got {', '.join(values) or 'nothing'}, {_takes(infos)}{hint}")
    return [values[name] for name in names]


def _takes(infos: Sequence[TensorInfo]) -> str:
    return f"the model takes {len(infos)}: {', '.join(map(str, infos))}"


def _refuse_twice(names: set[str], how: str) -> None:
    if names:
        raise InputError(f"{', '.join(sorted(map(str, names)))}: given twice, {how}")


def check_shapes(
    infos: Sequence[TensorInfo],
    shapes: Sequence[tuple[int, ...] | None],
    limits: Mapping[str, tuple[int, int | None]] = MappingProxyType({}),
) -> None:
    """Check ranks, fixed sizes, that one symbol has one size in all inputs, and that it is within the model's limits.

    Raises:
        InputError: such as ``batch: x1 has 4, x2 has 5``.
    """
    sizes: dict[str, tuple[int, str]] = {}  # of each symbol, with the first input that has it
    for info, shape in zip(infos, shapes, strict=True):
        if info.shape is None or shape is None:
            continue
        if len(shape) != len(info.shape):
            raise InputError(f"{info.name}: rank {len(shape)} (shape {shape}), the model takes {info}")
        for axis, (size, expected) in enumerate(zip(shape, info.shape, strict=True)):
            if isinstance(expected, int) and size != expected:
                raise InputError(f"{info.name}: axis {axis} has {size} (shape {shape}), the model takes {info}")
            if isinstance(expected, str) and sizes.setdefault(expected, (size, info.name))[0] != size:
                other, name = sizes[expected]
                raise InputError(f"{expected}: {name} has {other}, {info.name} has {size}; they must agree")
    for symbol, (least, most) in limits.items():
        size, name = sizes.get(symbol, (least, ""))
        if size < least or (most is not None and size > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}" if least else f"at most {most}"
            raise InputError(f"{symbol}: {name} has {size}; the model was exported for {allowed}")


class Reader:
    """Turns a value of one input into what ONNX Runtime may read, always with the model's dtype."""

    __slots__ = ("dtype", "info")

    def __init__(self, info: TensorInfo) -> None:
        self.info = info
        self.dtype = np.dtype(info.dtype) if info.dtype in NUMPY_DTYPES else None

    def read(self, value: Any) -> Any:
        """Return a C-contiguous, aligned, native numpy array; or, where numpy has none, a contiguous torch tensor.

        torch tensors stay so on a device other than the CPU and in dtypes without a numpy counterpart. What is no
        tensor for ONNX (sequences, maps) stays as it is.

        Raises:
            InputError: the dtype is another one, or the value cannot be read.
        """
        if _torch.is_tensor(value):
            return self._tensor(value)
        if self.info.dtype == "string":
            return self._strings(value)
        if "(" in self.info.dtype:  # seq(...), map(...), optional(...)
            return value
        if self.dtype is None:
            raise InputError(f"{self.info.name}: numpy has no {self.info.dtype}; give a torch tensor of that dtype")
        return self._array(self._as_numpy(value))

    def _tensor(self, value: Any) -> Any:
        array = _torch.as_array(value)
        if array is not None and array.dtype == self.dtype and array.flags.carray:
            return array
        dtype = _torch.dtype_name(value)
        if dtype != self.info.dtype:
            raise self._wrong_dtype(dtype, f".to(torch.{self.info.dtype})")
        try:
            tensor = _torch.plain(value)
            return self._array(tensor.numpy()) if self.dtype and tensor.device.type == "cpu" else tensor
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise InputError(f"{self.info.name}: this torch tensor cannot be read: {error}") from error

    def _as_numpy(self, value: Any) -> np.ndarray[Any, Any]:
        name = self.info.name
        if isinstance(value, np.ma.MaskedArray):
            raise InputError(f"{name}: ONNX knows no masks; fill it first: {name}.filled(...)")
        if isinstance(value, np.ndarray | np.generic):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return self._from_dlpack(value)
        try:
            return self._from_python(value) if _is_python(value) else np.asarray(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{name}: {type(value).__name__} cannot be made {self.info}: {error}") from error

    def _from_dlpack(self, value: Any) -> np.ndarray[Any, Any]:
        kind = type(value).__name__
        try:
            if value.__dlpack_device__()[0] in _DLPACK_HOST:
                return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(f"{self.info.name}: numpy cannot read this {kind} by DLPack: {error}") from error
        raise InputError(f"{self.info.name}: this {kind} is not in host memory; give torch.from_dlpack({kind}) instead")

    def _from_python(self, value: Any) -> np.ndarray[Any, Any]:
        """Return Python's numbers in the model's dtype, if it is of their kind: they have no width of their own."""
        array = np.asarray(value)
        assert self.dtype is not None
        if array.size and not np.can_cast(array.dtype, self.dtype, "same_kind"):
            # can_cast looks at int64 and float64, numpy's choice for Python's: int to float is fine, the rest is not
            if array.dtype.kind == "i" and self.dtype.kind == "u":
                return np.asarray(value, self.dtype)  # numpy refuses what does not fit
            raise self._wrong_dtype(f"Python's {array.dtype.name}", None)
        return np.asarray(value, self.dtype)

    def _array(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert self.dtype is not None
        if array.dtype != self.dtype and array.dtype.newbyteorder("=") != self.dtype:
            raise self._wrong_dtype(array.dtype.name, f".astype(np.{self.info.dtype})")
        if array.dtype == self.dtype and array.flags.c_contiguous and array.flags.aligned:
            return array
        return np.require(array, self.dtype, ["C", "A"])

    def _strings(self, value: Any) -> np.ndarray[Any, Any]:
        array = np.asarray(value)
        if array.dtype.kind not in "OUST":
            raise self._wrong_dtype(array.dtype.name, ".astype(str)")
        return array.astype(object)

    def _wrong_dtype(self, dtype: str, fix: str | None) -> InputError:
        name = self.info.name
        text = f"{name}: got {dtype}, the model takes {self.info.dtype}"
        return InputError(f"{text}; convert it: {name}{fix}" if fix else f"{text}; give a numpy array of that dtype")


def _is_python(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_python, value))
    return type(value) in (bool, int, float, complex)
