"""A call whose inputs and outputs keep their memory, for loops: nothing is read, checked or allocated a second time.

A model that works entry by entry (its metadata says so) is run in blocks of rows: its operators are not fused on the
CPU, so each is a pass over memory, and a pass over a block that stays in the cache costs far less.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _ort, _torch
from ._errors import InputError, SessionError
from ._memory import Watch, extent, memory_of, overlap
from ._probe import first_line
from ._types import TensorInfo

BLOCK = 1 << 20
"""Bytes of one input or output in a block of rows: of 32 KiB to 4 MiB tried, 0.5 to 1 MiB were the fastest."""
LARGE = 32 << 20
"""Bytes of inputs and outputs in all from which on blocks are worth it: what fits into the last cache needs none."""


class Bound:
    """What `Session.bind` returns: call it to run the model again on the same memory.

    Write new values into the inputs between calls. Every call writes into the same outputs; copy what is to outlast the
    next one. Threads take turns.

    The memory of the inputs and outputs lives as long as this object, whatever becomes of the arrays and tensors. If
    one of them gets other memory, a call would not see its values, so the next call is an InputError.
    """

    __slots__ = ("_inputs", "_lock", "_memory", "_names", "_outputs", "_runs", "_session", "_watch", "_where")

    def __init__(
        self,
        ort: Any,
        session: Any,
        names: Sequence[str],
        sources: Sequence[Any],
        outputs: Sequence[Any],
        inputs: Sequence[Any],
        where: str,
        rows: Sequence[bool] = (),
        *,
        copies: bool = False,
        options: Any = None,
        lock: Any = None,
    ) -> None:
        """Bind `sources`, the memory of the inputs, and the outputs.

        rows: which of them have rows that may be computed apart. copies: the session computes in memory of its own.
        options: ONNX Runtime's for each run. lock: one that other calls hold too, so that all take turns.
        """
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._names, self._session, self._where = names, session, where  # no binding outlives its session
        self._watch = Watch((*inputs, *outputs))
        self._memory = [*sources, *map(memory_of, outputs)]
        devices = {value.device for value in self._memory if not _on_host(value)}
        self._runs: list[Callable[[], Any]] = []
        for block in _blocks(self._memory, rows):
            binding = session.io_binding()
            host_inputs = []
            for i, (name, value) in enumerate(zip(names, block, strict=True)):
                attach = _attachment(ort, binding, name, value, output=i >= len(sources))
                if copies and i < len(sources) and _on_host(value):
                    host_inputs.append(attach)
                else:
                    attach()
            run = _ort.bound_runner(session, binding, options)
            self._runs.append(functools.partial(_run_on_device, run, binding, devices, host_inputs) if copies else run)
        self._lock = lock or threading.Lock()

    def __call__(self) -> tuple[Any, ...]:
        """Run the model on what the inputs now hold; return the outputs, the same objects every time.

        Raises:
            InputError: an input or output has other memory than when it was bound.
            SessionError: ONNX Runtime failed while it ran the model.
        """
        with self._lock:
            if not self._watch.stays():
                raise InputError(self._moved())
            try:
                for run in self._runs:
                    run()
            except Exception as error:  # ONNX Runtime's errors share no base class but this
                raise SessionError(f"{self._where}: ONNX Runtime failed in run: {first_line(error)}") from error
        return self._outputs

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The arrays or tensors that every call reads, in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The arrays or tensors that every call writes into and returns, in the model's order."""
        return self._outputs

    def _moved(self) -> str:
        names = [self._names[i] for i in self._watch.moved()]
        return (
            f"{', '.join(names)}: this array or tensor has got other memory since it was bound (by .data = ..., "
            f"set_(), share_memory_(), a change of its module's dtype); bind again, or write new values in place: "
            f"x.copy_(...), x[...] = ..."
        )


def _run_on_device(
    run: Callable[[], Any], binding: Any, devices: Iterable[Any], host_inputs: Sequence[Callable[[], None]]
) -> None:
    """Run a session that has memory of its own, and wait for it.

    ONNX Runtime's stream does not wait for the kernels that still write the inputs, on torch's current stream, and it
    copies an input of the host when that is bound, not when the model runs.
    """
    for device in devices:
        sys.modules["torch"].cuda.current_stream(device).synchronize()
    for attach in host_inputs:
        attach()
    if host_inputs:
        binding.synchronize_inputs()
    run()
    binding.synchronize_outputs()


def in_blocks(values: Sequence[Any]) -> bool:
    """Return whether the inputs and outputs of a call are large enough to be worth blocks of rows."""
    return bool(sum(value.nbytes for value in values) > LARGE)


def _blocks(values: list[Any], rows: Sequence[bool]) -> list[list[Any]]:
    """Cut the values into blocks of rows, where `rows` says that their first axis is that of the rows."""
    if not any(rows) or not in_blocks(values):
        return [values]
    count = next(len(value) for value, has_rows in zip(values, rows, strict=True) if has_rows)
    row_bytes = next(value.nbytes for value, has_rows in zip(values, rows, strict=True) if has_rows) / max(count, 1)
    step = max(int(BLOCK / row_bytes), 1)
    return [
        [value[first : first + step] if has_rows else value for value, has_rows in zip(values, rows, strict=True)]
        for first in range(0, count, step)
    ]


def in_place(info: TensorInfo, value: Any, source: Any) -> Any:
    """Check that the source, which a bound call reads, is the memory of the caller's value; return it.

    Raises:
        InputError: it is a copy, in which the call would not see later changes of the value.
    """
    if _torch.is_tensor(value):
        is_same = not value.numel() or value.data_ptr() == extent(source)[0]  # torch has no address for what is empty
        fix = f"{info.name}.contiguous()"
    else:
        is_same = isinstance(value, np.ndarray) and source.dtype.kind != "O" and extent(value) == extent(source)
        fix = f"np.ascontiguousarray({info.name}, np.{info.dtype})"
    if not is_same:
        raise InputError(f"{info.name}: a bound call reads the caller's own memory, and this needs a copy; bind {fix}")
    return source


def destinations(
    infos: Sequence[TensorInfo], outputs: Any, examples: Sequence[Any], sources: Sequence[Any]
) -> list[Any]:
    """Check the outputs that the caller gives against examples, the outputs of a first run.

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
    for i, (info, output, example) in enumerate(zip(infos, outputs, examples, strict=True)):
        expected, actual = _description(example), _description(output)
        if expected != actual:
            raise InputError(f"{info.name}: for these inputs the model writes {expected}; got {actual}")
        if not _is_writable(output):
            raise InputError(f"{info.name}: an output is written in place: it has to be contiguous and writable")
        if any(overlap(output, value) for value in (*sources, *outputs[:i])):
            raise InputError(f"{info.name} shares memory with an input or another output; give it memory of its own")
    return list(outputs)


def _attachment(ort: Any, binding: Any, name: str, value: Any, *, output: bool) -> Callable[[], None]:
    """Return what binds an input or output."""
    if _torch.is_tensor(value):
        bind = binding.bind_ortvalue_output if output else binding.bind_ortvalue_input
        return functools.partial(bind, name, _torch.ort_value(ort, name, value))
    bind = binding.bind_output if output else binding.bind_input
    return functools.partial(bind, name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)


def _on_host(value: Any) -> bool:
    return not _torch.is_tensor(value) or value.device.type == "cpu"


def _description(value: Any) -> str:
    if _torch.is_tensor(value):
        return f"a torch tensor {_torch.dtype_name(value)}{list(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"a numpy array {value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"


def _is_writable(value: Any) -> bool:
    if _torch.is_tensor(value):
        return bool(value.is_contiguous()) and not value.requires_grad
    return bool(value.flags.carray)
