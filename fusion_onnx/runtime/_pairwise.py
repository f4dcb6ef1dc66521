"""Sums, maxima and minima of many inputs taken two by two, for calls on CUDA with an empty input.

The CPU computes those, but for bfloat16, for which it has none of these kernels. ONNX Runtime's CUDA kernel for three
inputs or more is launched with no blocks where there is nothing to compute, which CUDA refuses as an invalid
configuration; the kernel for two is not launched at all then.
"""

import os
from collections.abc import Callable, Iterable, Sequence

from ._model_file import opened
from ._wire import Message, edited, encode

OPERATORS = ("Sum", "Max", "Min")
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}
"""Where onnx.proto has nodes: what a message holds, by the number of the field."""


def pairwise(model: str | os.PathLike[str] | bytes) -> bytes | None:
    """Return the model with its operators on many inputs written as ones on two; None where it has none."""
    with opened(model) as (buffer, _):
        return edited(Message(buffer), _edit("model"))


def _edit(kind: str) -> Callable[[int, Message], Iterable[bytes] | None]:
    def edit(number: int, part: Message) -> Iterable[bytes] | None:
        inner = _INSIDE[kind].get(number)
        if inner is None:
            return None
        if inner == "node" and (pairs := _pairs(part)):
            return pairs
        changed = edited(part, _edit(inner))
        return None if changed is None else [changed]

    return edit


def _pairs(node: Message) -> Sequence[bytes]:
    """Return nodes that do the same from left to right; none where this one takes two inputs or does something else."""
    inputs: list[str] = []
    text = {2: "", 4: "", 7: ""}  # the output, the operator, its domain
    for number, part in node.fields():
        if number == 1 and isinstance(part, Message):
            inputs.append(part.text())
        elif number in text and isinstance(part, Message):
            text[number] = part.text()
    if text[4] not in OPERATORS or text[7] not in ("", "ai.onnx") or len(inputs) < 3:
        return ()
    written, left = [], inputs[0]
    for i, right in enumerate(inputs[1:], 2):
        y = text[2] if i == len(inputs) else f"{text[2]}/{i}"
        written.append(encode(1, left) + encode(1, right) + encode(2, y) + encode(4, text[4]))
        left = y
    return written
