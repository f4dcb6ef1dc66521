"""LSTM and GRU: what keeps their time axis dynamic in torch.onnx.export."""

import contextlib
from collections.abc import Iterator

import torch

try:
    from torch.export import _patches
except ImportError:  # an older torch, whose torch.onnx.export does without
    _patches = None  # type: ignore[assignment]


@contextlib.contextmanager
def dynamic_time() -> Iterator[None]:
    """Keep the time axis of LSTM and GRU dynamic from the first to the last step of torch.onnx.export.

    It does so itself in its first step alone: in the next one, torch's own kernel takes the example's length for a
    constant. And what torch keeps of the one kernel is wrong for the other, so a process's second export would fail.
    """
    operators = {"lstm": torch.ops.aten.lstm.input, "gru": torch.ops.aten.gru.input}
    try:
        with contextlib.ExitStack() as stack:
            for name in operators:
                if register := getattr(_patches, f"register_{name}_while_loop_decomposition", None):
                    stack.enter_context(register())
            for operator in operators.values():
                operator._dispatch_cache.clear()
            yield
    finally:
        for operator in operators.values():
            operator._dispatch_cache.clear()
