"""What arrives at a fusion's node: its weights, and eager's inputs in eager's order."""

from typing import Any

import numpy as np
from torch import Tensor

from fusion_onnx.verification.locate.case import Case, Location, floating
from fusion_onnx.verification.locate.graph import Group
from fusion_onnx.verification.locate.operators import blamed
from fusion_onnx.verification.locate.recording import Call, dtype_of
from fusion_onnx.verification.tolerance import Array, array


def wrong_weights(case: Case, group: Group, call: Call) -> Location | None:
    """Return where the file holds other parameters or buffers than the module, or takes them from elsewhere."""
    if group.inlined:
        return _inlined_weights(case, group, call)
    wanted = len(call.xs) + len(call.parameters)
    if len(group.arriving) != wanted:
        detail = f"the node takes {len(group.arriving)} inputs, eager gives it {wanted}."
        return case.found(group, "wiring", detail)
    for name, (label, tensor) in zip(group.arriving[len(call.xs) :], call.parameters, strict=True):
        got = case.values.get(name)
        if got is None or _same_parameter(case, call, label, tensor, got):
            continue
        fault = "weights" if case.graph.is_constant(name) else "wiring"
        return case.found(group, fault, f"{label}, which the file calls {name!r}: {_first_change(tensor, got)}.")
    return None


def _inlined_weights(case: Case, group: Group, call: Call) -> Location | None:
    left = dict(call.parameters)
    unknown = []
    for name in group.arriving:
        got = case.values.get(name)
        if got is None or not case.graph.is_constant(name) or not floating(got):
            continue
        same = [label for label, p in call.parameters if _same_parameter(case, call, label, p, got)]
        for label in same:
            left.pop(label, None)
        unknown += [] if same else [(name, got)]
    for name, got in unknown:
        fitting = [label for label, p in left.items() if p.numel() == array(got).size] or list(left)
        if fitting:
            change = _first_change(left[fitting[0]], got)
            return case.found(group, "weights", f"{fitting[0]}, which the file calls {name!r}: {change}.")
    return None


def _same_parameter(case: Case, call: Call, label: str, tensor: Tensor, got: Any) -> bool:
    if dtype_of(got) == dtype_of(tensor) and np.array_equal(_flat(tensor), _flat(got), equal_nan=True):
        return True
    if label != "w" or isinstance(got, np.ndarray):
        return False
    return array(got).size == tensor.numel() and not case.differs(("w", call.name, 0), tensor, got.reshape(-1))


def wrong_inputs(case: Case, group: Group, call: Call) -> Location | None:
    """Return which input gets something else than in eager, and from where."""
    if group.inlined:
        return _inlined_wiring(case, group, call)
    for i, (name, x) in enumerate(zip(group.arriving, call.xs, strict=False)):
        got = case.values.get(name)
        found = None if got is None else _wrong_input(case, group, call, name, i, x)
        if found:
            return found
    return None


def _wrong_input(case: Case, group: Group, call: Call, name: str, i: int, x: Tensor) -> Location | None:
    got = case.values[name]
    difference = case.differs(("x", call.name, i), x, got)
    if not difference:
        return None
    source = case.graph.maker_name(name)
    for j, other in enumerate(call.xs):
        if j != i and not case.differs(("x", call.name, j), other, got):
            detail = f"input {i + 1} gets what eager gives to input {j + 1}, from {source!r}: {difference}."
            return case.found(group, "wiring", detail)
    culprit = blamed(case, name, x)
    if culprit:
        detail = f"before input {i + 1} of {group.name!r}: {difference}."
        return case.found(None, "operator", detail, culprit)
    return case.found(group, "wiring", f"input {i + 1} comes from {source!r}: {difference}.")


def _inlined_wiring(case: Case, group: Group, call: Call) -> Location | None:
    """Check that each value which arrives is one of eager's: which operator reads which is the body's matter."""
    found = matched(case, group, call)
    missing = [i for i, x in enumerate(call.xs) if not any(x is m for m in found.values())]
    for name in group.arriving:
        got = case.values.get(name)
        if name in found or got is None or case.graph.is_constant(name) or not floating(got):
            continue
        if missing:
            return _wrong_input(case, group, call, name, missing[0], call.xs[missing[0]])
        return case.found(group, "wiring", f"{case.graph.maker_name(name)!r} arrives, which eager does not give.")
    return None


def matched(case: Case, group: Group, call: Call) -> dict[str, Tensor]:
    """Return which of eager's inputs and parameters each arriving value of an inlined fusion is."""
    found: dict[str, Tensor] = {}
    for name in group.arriving:
        got = case.values.get(name)
        if got is None or not floating(got):
            continue
        data = [x for i, x in enumerate(call.xs) if not case.differs(("x", call.name, i), x, got)]
        held = [p for label, p in call.parameters if _same_parameter(case, call, label, p, got)]
        for tensor in (held + data if case.graph.is_constant(name) else data + held)[:1]:
            found[name] = tensor
    return found


def _flat(value: Any) -> Array:
    return array(value).reshape(-1)


def _first_change(eager: Tensor, model: Any) -> str:
    """Say where a parameter differs: its dtype, its size, or its first other entry."""
    a, b = _flat(eager), _flat(model)
    if dtype_of(eager) != dtype_of(model):
        return f"the file has {dtype_of(model)}, the module {dtype_of(eager)}"
    if a.shape != b.shape:
        return f"the file has {b.size} values, the module {a.size}"
    wrong = np.flatnonzero(~((a == b) | (np.isnan(a) & np.isnan(b))))
    at = int(wrong[0])
    return f"{len(wrong)} of {a.size} values differ; at [{at}] the file has {b[at]:.9g}, the module {a[at]:.9g}"
