"""Which operator of a body is wrong: a strategy's own `decompose`, computed operator by operator, tells."""

from typing import Any

import numpy as np
import torch

from fusion_onnx.verification.locate.graph import Group, computed
from fusion_onnx.verification.tolerance import unit
from fusion_onnx.verification.trace import Call


class Numbers:
    """What `decompose` gets as `op` here: `op.Add(x, y)` computes on arrays, and keeps what came out by its name."""

    def __init__(self, rank: int, dtype: Any, opset: int) -> None:
        self.rank, self.dtype, self.opset = rank, dtype, opset
        self.results: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def constant(self, value: Any) -> Any:
        """Return numbers as an array of the type that is computed in."""
        return self._keep("Constant", [np.asarray(value, dtype=self.dtype)])

    def integers(self, values: Any) -> Any:
        """Return whole numbers as an array."""
        return self._keep("Constant", [np.asarray(values, dtype=np.int64)])

    def __getattr__(self, operator: str) -> Any:
        from onnx import helper

        def compute(*inputs: Any, _outputs: int = 1, **attributes: Any) -> Any:
            names = [f"i{i}" for i in range(len(inputs))]
            node = helper.make_node(operator, names, [f"o{i}" for i in range(_outputs)], **attributes)
            return self._keep(operator, computed(node, inputs, self.opset))

        return compute

    def _keep(self, operator: str, outputs: list[Any]) -> Any:
        name = operator.lower()
        self._counts[name] = self._counts.get(name, 0) + 1
        self.results[f"{name}_{self._counts[name]}"] = outputs
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def expected(call: Call, opset: int) -> dict[str, Any]:
    """Return what each operator of the right body gives, by its name in the body. Raises what `decompose` does."""
    first = call.xs[0]
    widen = call.fusion.computes_in(first.dtype) != first.dtype
    values = [t.numpy() for t in (*call.xs, *(p for _, p in call.parameters))]
    op = Numbers(first.ndim, np.dtype(np.float32) if widen else values[0].dtype, opset)
    if widen:
        values = [op._keep("Cast", [v.astype(np.float32)]) for v in values]
    k, end = len(call.xs), len(call.xs) + len(call.buffers)
    y = call.written.decompose(op, values[:k], values[end] if len(values) > end else None, *values[k:end])
    if widen:
        op._keep("Cast", [y.astype(call.y.numpy().dtype)])
    elif any(y is v for v in values):
        op._keep("Identity", [y])
    return op.results


def wrong_node(group: Group, call: Call, values: dict[str, Any]) -> str:
    """Return the first node of a body that gives something else than it should; empty where that cannot be told.

    values: what the body's values are, by name.
    """
    try:
        right = expected(call, group.opset)
    except Exception:  # a strategy of somebody else's may ask for more than is computed here
        return ""
    for node in group.nodes:
        outputs = [values[name] for name in node.output if name in values]
        right_outputs = right.get(node.name.rpartition("/")[2])
        if not outputs or (node.op_type == "Constant" and right_outputs is None):
            continue  # not computed, or a number for an operator to come, which will show what it does
        if right_outputs is None or not _same(outputs, right_outputs):
            return group.inner(node.name)
    return ""


def _same(outputs: list[Any], right_outputs: Any) -> bool:
    return right_outputs is not None and len(outputs) == len(right_outputs) and all(map(_close, outputs, right_outputs))


def _close(a: Any, b: Any) -> bool:
    """Whether two arrays, from the same operator and so the same but for a product's order, are one value."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f" or not a.size:
        return bool(np.array_equal(a, b))
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= 4 * unit(torch.from_numpy(a).dtype) * np.abs(b)
    return bool(np.all(near | (a == b) | (np.isnan(a) & np.isnan(b))))
