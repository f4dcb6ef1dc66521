"""Calls on CUDA with an empty input: a session of their own, in which nothing is launched that CUDA refuses.

The CPU computes what it has kernels for, which is all but some in bfloat16. ONNX Runtime's CUDA kernel for sums,
maxima and minima of three inputs or more is launched with no blocks where there is nothing to compute, and CUDA refuses
that as an invalid configuration. The kernel for two inputs is not launched at all then, so they are taken two by two.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ._model_file import opened
from ._probe import CPU
from ._recipe import Recipe
from ._wire import (
    ATTRIBUTE_G,
    ATTRIBUTE_GRAPHS,
    FUNCTION_NODE,
    GRAPH_NODE,
    MODEL_FUNCTIONS,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    NODE_DOMAIN,
    NODE_INPUT,
    NODE_OP_TYPE,
    NODE_OUTPUT,
    Message,
    edited,
    encode,
)

OPERATORS = ("Sum", "Max", "Min")
_INSIDE = {
    "model": {MODEL_GRAPH: "graph", MODEL_FUNCTIONS: "function"},
    "graph": {GRAPH_NODE: "node"},
    "function": {FUNCTION_NODE: "node"},
    "node": {NODE_ATTRIBUTE: "attribute"},
    "attribute": {ATTRIBUTE_G: "graph", ATTRIBUTE_GRAPHS: "graph"},
}
"""Where onnx.proto has nodes: what a message holds, by the number of the field."""


def session_for_empty(recipe: Recipe, options: Any) -> Any:
    """Make a session for calls with an empty input: the CPU first, and CUDA, so that tensors may lie on the GPU."""
    options = options or recipe.ort.SessionOptions()
    if isinstance(recipe.source, str):  # its weights may lie beside it
        folder = os.path.dirname(os.path.abspath(recipe.source))
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    plan = recipe.plan
    if plan is not None:
        providers = [entry for entry in plan.providers if entry[0] != CPU]
        plan = plan._replace(providers=[(CPU, {}), *providers], strict=False)
    return recipe._replace(source=pairwise(recipe.source) or recipe.source, plan=plan).make(options)


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
        replacement = edited(part, _edit(inner))
        return None if replacement is None else [replacement]

    return edit


def _pairs(node: Message) -> Sequence[bytes]:
    """Return nodes that do the same from left to right; none where this one takes two inputs or does something else."""
    inputs: list[str] = []
    texts = {NODE_OUTPUT: "", NODE_OP_TYPE: "", NODE_DOMAIN: ""}
    for number, part in node.fields():
        if number == NODE_INPUT and isinstance(part, Message):
            inputs.append(part.text())
        elif number in texts and isinstance(part, Message):
            texts[number] = part.text()
    output, op_type, domain = texts.values()
    if op_type not in OPERATORS or domain not in ("", "ai.onnx") or len(inputs) < 3:
        return ()
    nodes, left = [], inputs[0]
    for i, right in enumerate(inputs[1:], 2):
        y = output if i == len(inputs) else f"{output}/{i}"
        operands = encode(NODE_INPUT, left) + encode(NODE_INPUT, right)
        nodes.append(operands + encode(NODE_OUTPUT, y) + encode(NODE_OP_TYPE, op_type))
        left = y
    return nodes
