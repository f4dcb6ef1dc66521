"""A call whose inputs and outputs keep their memory, for loops: nothing is read, checked or allocated a second time.

A model that works entry by entry (its metadata says so) is run in blocks of rows: its operators are not fused on the
CPU, so each is a pass over memory, and a pass over a block that stays in the cache costs far less.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _ort, _torch
from ._errors import InputError, SessionError
from ._probe import first_line
from ._types import TensorInfo

BLOCK = 1 << 20
"""Bytes of one input or output in a block of rows: of 32 KiB to 4 MiB tried, 0.5 to 1 MiB were the fastest."""
LARGE = 32 << 20
"""Bytes of inputs and outputs in all from which on blocks are worth it: what fits into the last cache needs none."""


class Bound:
    """What `Session.bind` returns: call it to run the model again on the same memory.

    inputs: the arrays or tensors that are read, in the model's order; write into them between calls. outputs: those
    that every call writes into, and returns; copy what is to outlast the next call. Threads take turns.
    """

    __slots__ = ("_bindings", "_device", "_lock", "_runs", "_where", "inputs", "outputs")

    def __init__(
        self,
        ort: Any,
        session: Any,
        names: Sequence[str],
        read: Sequence[Any],
        outputs: list[Any],
        inputs: Sequence[Any],
        where: str,
        rows: Sequence[bool] = (),
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), outputs
        self._where = where
        self._bindings = []
        for block in _blocks([*read, *outputs], rows):
            binding = session.io_binding()
            for i, (name, value) in enumerate(zip(names, block, strict=True)):
                _attach(ort, binding, name, value, output=i >= len(read))
            self._bindings.append(binding)
        self._runs = [_ort.bound_runner(session, binding) for binding in self._bindings]
        devices = {v.device for v in (*read, *outputs) if _torch.is_tensor(v) and v.device.type != "cpu"}
        self._device = devices.pop() if devices else None
        self._lock = threading.Lock()

    def __call__(self) -> list[Any]:
        """Run the model on what the inputs now hold; return the outputs, the same objects every time.

        Raises:
            SessionError: ONNX Runtime failed while it ran the model.
        """
        with self._lock:
            try:
                if self._device is None:
                    for run in self._runs:
                        run()
                else:  # ONNX Runtime's stream does not wait for the kernels that still write the inputs
                    sys.modules["torch"].cuda.current_stream(self._device).synchronize()
                    for run, binding in zip(self._runs, self._bindings, strict=True):
                        run()
                        binding.synchronize_outputs()
            except Exception as error:  # ONNX Runtime's errors share no base class but this
                raise SessionError(f"{self._where}: ONNX Runtime failed in run: {first_line(error)}") from error
        return self.outputs


def in_blocks(values: Sequence[Any]) -> bool:
    """Return whether what is read and written is large enough to be worth blocks of rows."""
    return bool(sum(value.nbytes for value in values) > LARGE)


def _blocks(values: list[Any], rows: Sequence[bool]) -> list[list[Any]]:
    """Cut the values into blocks of rows, where `rows` says that their first axis is that of the rows."""
    if not any(rows) or not in_blocks(values):
        return [values]
    values = [value.detach().numpy() if _torch.is_tensor(value) else value for value in values]
    count = next(len(value) for value, cut in zip(values, rows, strict=True) if cut)
    each = next(value.nbytes for value, cut in zip(values, rows, strict=True) if cut) / max(count, 1)
    step = max(int(BLOCK / each), 1)
    return [
        [value[first : first + step] if cut else value for value, cut in zip(values, rows, strict=True)]
        for first in range(0, count, step)
    ]


def in_place(info: TensorInfo, given: Any, read: Any) -> Any:
    """Return what a bound call reads, which has to be the caller's own memory.

    Raises:
        InputError: it was copied to be read, so that later changes of it would not be seen.
    """
    if _torch.is_tensor(given):
        same = given.data_ptr() == (read.data_ptr() if _torch.is_tensor(read) else read.ctypes.data)
        fix = f"{info.name}.contiguous()"
    else:
        same = isinstance(given, np.ndarray) and read.dtype.kind != "O" and _place(given) == _place(read)
        fix = f"np.ascontiguousarray({info.name}, np.{info.dtype})"
    if not same:
        raise InputError(f"{info.name}: a bound call reads the caller's own memory, and this needs a copy; bind {fix}")
    return read


def destinations(infos: Sequence[TensorInfo], outputs: Any, like: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Check the outputs that the caller gives against those of a first run.

    Raises:
        InputError: another number, name, type, dtype, shape or device; not contiguous; read-only; an input's memory.
    """
    if isinstance(outputs, Mapping):
        names = [info.name for info in infos]
        if sorted(outputs) != sorted(names):
            raise InputError(f"outputs are {', '.join(names)}; got {', '.join(map(str, outputs)) or 'nothing'}")
        outputs = [outputs[name] for name in names]
    elif not isinstance(outputs, list | tuple):
        outputs = [outputs]
    if len(outputs) != len(infos):
        raise InputError(f"the model gives {len(infos)} outputs: {', '.join(map(str, infos))}; got {len(outputs)}")
    for info, given, right in zip(infos, outputs, like, strict=True):
        wanted, got = _described(right), _described(given)
        if wanted != got:
            raise InputError(f"{info.name}: for these inputs the model writes {wanted}; got {got}")
        if not _writable(given):
            raise InputError(f"{info.name}: an output is written in place: it has to be contiguous and writable")
        if any(_overlap(given, value) for value in (*inputs, *(o for o in outputs if o is not given))):
            raise InputError(f"{info.name} shares memory with an input or another output; give it memory of its own")
    return list(outputs)


def _attach(ort: Any, binding: Any, name: str, value: Any, *, output: bool) -> None:
    if _torch.is_tensor(value):
        bind = binding.bind_ortvalue_output if output else binding.bind_ortvalue_input
        bind(name, _torch.ort_value(ort, name, value))
    else:
        bind = binding.bind_output if output else binding.bind_input
        bind(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)


def _described(value: Any) -> str:
    if _torch.is_tensor(value):
        return f"a torch tensor {_torch.dtype_name(value)}{list(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"a numpy array {value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"


def _writable(value: Any) -> bool:
    if _torch.is_tensor(value):
        return bool(value.is_contiguous()) and not value.requires_grad
    return bool(value.flags.carray)


def _place(value: Any) -> tuple[int, int]:
    """Return where the values of a contiguous array or CPU tensor begin, and how many bytes they take."""
    if _torch.is_tensor(value):
        return value.data_ptr(), value.numel() * value.element_size()
    return value.ctypes.data, value.nbytes


def _overlap(a: Any, b: Any) -> bool:
    (first, count), (second, other) = _place(a), _place(b)
    return first < second + other and second < first + count
