"""What arrives at a fusion's node: its weights, and eager's inputs in eager's order."""

from typing import Any

import numpy as np
from torch import Tensor

from fusion_onnx.verification.locate.graph import Group
from fusion_onnx.verification.locate.location import Location
from fusion_onnx.verification.locate.operators import blamed
from fusion_onnx.verification.locate.trial_run import TrialRun, floating
from fusion_onnx.verification.tolerance import Array, array, dtype_name
from fusion_onnx.verification.trace import Call


def wrong_weights(run: TrialRun, group: Group, call: Call) -> Location | None:
    """Return where the file holds other parameters or buffers than the module, or takes them from elsewhere."""
    if group.inlined:
        return _inlined_weights(run, group, call)
    count = len(call.xs) + len(call.parameters)
    if len(group.graph_inputs) != count:
        detail = f"the node takes {len(group.graph_inputs)} inputs, eager gives it {count}."
        return run.located(group, "wiring", detail)
    for name, (label, tensor) in zip(group.graph_inputs[len(call.xs) :], call.parameters, strict=True):
        result = run.values.get(name)
        if result is None or _same_parameter(run, call, label, tensor, result):
            continue
        fault = "weights" if run.graph.is_constant(name) else "wiring"
        return run.located(group, fault, f"{label}, which the file calls {name!r}: {_first_change(tensor, result)}.")
    return None


def _inlined_weights(run: TrialRun, group: Group, call: Call) -> Location | None:
    left = dict(call.parameters)
    unknown = []
    for name in group.graph_inputs:
        result = run.values.get(name)
        if result is None or not run.graph.is_constant(name) or not floating(result):
            continue
        same = [label for label, p in call.parameters if _same_parameter(run, call, label, p, result)]
        for label in same:
            left.pop(label, None)
        unknown += [] if same else [(name, result)]
    for name, result in unknown:
        fitting = [label for label, p in left.items() if p.numel() == array(result).size] or list(left)
        if fitting:
            change = _first_change(left[fitting[0]], result)
            return run.located(group, "weights", f"{fitting[0]}, which the file calls {name!r}: {change}.")
    return None


def _same_parameter(run: TrialRun, call: Call, label: str, tensor: Tensor, result: Any) -> bool:
    if dtype_name(result) == dtype_name(tensor) and np.array_equal(_flat(tensor), _flat(result), equal_nan=True):
        return True
    if label != "w" or isinstance(result, np.ndarray):
        return False
    return array(result).size == tensor.numel() and not run.differs(("w", call.name, 0), tensor, result.reshape(-1))


def wrong_inputs(run: TrialRun, group: Group, call: Call) -> Location | None:
    """Return which input gets something else than in eager, and from where."""
    if group.inlined:
        return _inlined_wiring(run, group, call)
    for i, (name, x) in enumerate(zip(group.graph_inputs, call.xs, strict=False)):
        result = run.values.get(name)
        location = None if result is None else _wrong_input(run, group, call, name, i, x)
        if location:
            return location
    return None


def _wrong_input(run: TrialRun, group: Group, call: Call, name: str, i: int, x: Tensor) -> Location | None:
    result = run.values[name]
    difference = run.differs(("x", call.name, i), x, result)
    if not difference:
        return None
    source = run.graph.maker_name(name)
    for j, other in enumerate(call.xs):
        if j != i and not run.differs(("x", call.name, j), other, result):
            detail = f"input {i + 1} gets what eager gives to input {j + 1}, from {source!r}: {difference}."
            return run.located(group, "wiring", detail)
    culprit = blamed(run, name, x)
    if culprit:
        detail = f"before input {i + 1} of {group.name!r}: {difference}."
        return run.located(None, "operator", detail, culprit)
    return run.located(group, "wiring", f"input {i + 1} comes from {source!r}: {difference}.")


def _inlined_wiring(run: TrialRun, group: Group, call: Call) -> Location | None:
    """Check that each value which arrives is one of eager's: which operator reads which is the body's matter."""
    matches = matched(run, group, call)
    missing = [i for i, x in enumerate(call.xs) if not any(x is m for m in matches.values())]
    for name in group.graph_inputs:
        result = run.values.get(name)
        if name in matches or result is None or run.graph.is_constant(name) or not floating(result):
            continue
        if missing:
            return _wrong_input(run, group, call, name, missing[0], call.xs[missing[0]])
        return run.located(group, "wiring", f"{run.graph.maker_name(name)!r} arrives, which eager does not give.")
    return None


def matched(run: TrialRun, group: Group, call: Call) -> dict[str, Tensor]:
    """Return which of eager's inputs and parameters each graph input of an inlined fusion is."""
    matches: dict[str, Tensor] = {}
    for name in group.graph_inputs:
        result = run.values.get(name)
        if result is None or not floating(result):
            continue
        data = [x for i, x in enumerate(call.xs) if not run.differs(("x", call.name, i), x, result)]
        parameters = [p for label, p in call.parameters if _same_parameter(run, call, label, p, result)]
        for tensor in (parameters + data if run.graph.is_constant(name) else data + parameters)[:1]:
            matches[name] = tensor
    return matches


def _flat(value: Any) -> Array:
    return array(value).reshape(-1)


def _first_change(eager: Tensor, model: Any) -> str:
    """Say where a parameter differs: its dtype, its size, or its first other entry."""
    a, b = _flat(eager), _flat(model)
    if dtype_name(eager) != dtype_name(model):
        return f"the file has {dtype_name(model)}, the module {dtype_name(eager)}"
    if a.shape != b.shape:
        return f"the file has {b.size} values, the module {a.size}"
    wrong = np.flatnonzero(~((a == b) | (np.isnan(a) & np.isnan(b))))
    at = int(wrong[0])
    return f"{len(wrong)} of {a.size} values differ; at [{at}] the file has {b[at]:.9g}, the module {a[at]:.9g}"
