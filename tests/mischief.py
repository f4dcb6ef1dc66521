"""What may be done to arrays and tensors that a bound call reads or writes: `python -m tests.mischief` does it all.

One act a line, with what became of it: "refused" by the memory's owner, "error" by the next call, else the value that
the call gave. A process of its own does it, for an act that reads or writes freed memory may end it.
"""

import gc
import mmap
import multiprocessing.shared_memory
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from fusion_onnx.runtime import InputError, Session

SHAPE = (512, 1024)
BYTES = 4 * SHAPE[0] * SHAPE[1]


def model(*operators: str, inputs: tuple[str, ...] = ("x1", "x2")) -> Any:
    """Return a model with one output for each operator, all of the same inputs."""
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]) for name in (*inputs, "y", "z")}
    outputs = ["y", "z"][: len(operators)]
    nodes = [helper.make_node(op, inputs, [y]) for op, y in zip(operators, outputs, strict=True)]
    graph = helper.make_graph(nodes, "g", [infos[name] for name in inputs], [infos[name] for name in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def array() -> Any:
    """Return ones."""
    return np.ones(SHAPE, np.float32)


def tensor() -> Any:
    """Return ones."""
    return torch.ones(SHAPE)


def over(buffer: Any) -> Any:
    """Return ones in this buffer. The array does not lock the buffer."""
    x = np.ndarray(SHAPE, np.float32, buffer=buffer)
    x[...] = 1
    return x


# each gives what is bound as x1, or as the output, and the act
Act = Callable[[], Any]


def _data() -> tuple[Any, Act]:
    x = tensor()
    return x, lambda: setattr(x, "data", tensor() * 2)


def _set() -> tuple[Any, Act]:
    x = tensor()
    return x, lambda: x.set_()


def _module() -> tuple[Any, Act]:
    module = torch.nn.Module()
    module.x = torch.nn.Parameter(tensor(), requires_grad=False)
    return module.x, lambda: (module.double(), module.float())


def _shared() -> tuple[Any, Act]:
    x = tensor()
    return x, lambda: x.share_memory_()


def _swapped() -> tuple[Any, Act]:
    x = tensor()
    return x, lambda: torch.utils.swap_tensors(x, tensor())


def _storage() -> tuple[Any, Act]:
    x = tensor()
    return x, lambda: x.untyped_storage().resize_(0)


def _numpy_of_tensor() -> tuple[Any, Act]:
    x = tensor()
    return x.numpy(), lambda: setattr(x, "data", tensor() * 2)


def _resized() -> tuple[Any, Act]:
    x = array()
    return x, lambda: x.resize((4096, 2048), refcheck=False)


def _base_resized() -> tuple[Any, Act]:
    x = array()
    return x[:], lambda: x.resize((4096, 2048), refcheck=False)


def _state() -> tuple[Any, Act]:
    x = array()
    return x, lambda: x.__setstate__((1, (3,), np.dtype(np.float32), False, bytes(12)))


def _mapping() -> tuple[Any, Act]:
    buffer = mmap.mmap(-1, BYTES)
    return over(buffer), buffer.close


def _block() -> tuple[Any, Act]:
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=BYTES)
    block.unlink()
    return over(block.buf), block.close


def _bytes() -> tuple[Any, Act]:
    buffer = bytearray(BYTES)
    return over(buffer), buffer.clear


def _view() -> tuple[Any, Act]:
    buffer = bytearray(BYTES)
    view = memoryview(buffer)
    return over(view), lambda: (view.release(), buffer.clear())


ACTS = {
    "tensor.data = ...": (_data, "error"),
    "tensor.set_()": (_set, "error"),
    "module.double().float()": (_module, "error"),
    "tensor.share_memory_()": (_shared, "error"),
    "swap_tensors": (_swapped, "error"),
    "storage.resize_(0)": (_storage, "refused, 2"),
    "array.base.data = ...": (_numpy_of_tensor, "2"),
    "array.resize(refcheck=False)": (_resized, "refused, 2"),
    "array.base.resize(refcheck=False)": (_base_resized, "refused, 2"),
    "array.__setstate__(...)": (_state, "error"),
    "mmap.close()": (_mapping, "refused, 2"),
    "SharedMemory.close()": (_block, "refused, 2"),
    "bytearray.clear()": (_bytes, "refused, 2"),
    "memoryview.release()": (_view, "refused, 2"),
}
"""Acts on what is bound, each with what becomes of it."""


def outcomes(session: Session) -> Iterator[tuple[str, str, str]]:
    """Do it all to a session that adds; yield the name of each act, what should become of it, and what does."""
    for name, (act, right) in ACTS.items():
        yield f"input: {name}", right, _outcome(session, *act(), output=False)
        yield f"output: {name}", right, _outcome(session, *act(), output=True)
    yield "the list of outputs", "True 2 9", _outputs_lost(session)
    yield "the session", "2", _session_lost()


def _outcome(session: Session, x: Any, act: Act, *, output: bool) -> str:
    other = tensor() if isinstance(x, torch.Tensor) else array()
    call = session.bind(other, other, outputs=x) if output else session.bind(x, other)
    del x
    said = ""
    try:
        act()
    except (ValueError, RuntimeError, BufferError):
        said = "refused, "
    del act
    gc.collect()
    others = [array() * 9 for _ in range(3)]  # who gets the memory if it is free
    try:
        [y] = call()
    except InputError as error:
        said += "error" if ("y" if output else "x1") in str(error).partition(":")[0] else str(error)
    else:
        said += f"{float(y[0, 0]):.0f}"
    return said if all((z == 9).all() for z in others) else f"{said}, and somebody else's memory was written"


def _outputs_lost(session: Session) -> str:
    a = array()
    call = session.bind(a, a, outputs=[array()])
    outputs = list(call())
    outputs.clear()
    gc.collect()
    other = session.run(a, array() * 8)[0]
    return f"{isinstance(call(), tuple)} {call()[0][0, 0]:.0f} {other[0, 0]:.0f}"


def _session_lost() -> str:
    call = Session(model("Add"), "cpu", threads=1).bind(array(), array())
    gc.collect()
    return f"{call()[0][0, 0]:.0f}"


if __name__ == "__main__":
    wrong = 0
    for name, right, got in outcomes(Session(model("Add"), "cpu", threads=1)):
        wrong += got != right
        print(f"{name}: {got}" + ("" if got == right else f"; right is {right}"), flush=True)
    sys.exit(wrong > 0)
