"""The ordinary operators, outside the fusions: which of them made a wrong value."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.verification.locate.trial_run import TrialRun, floating
from fusion_onnx.verification.tolerance import array, dtype_name


def blamed(run: TrialRun, name: str, expected: Tensor | None) -> str:
    """Return the first ordinary node on the way to a wrong value after which eager has nothing like it, or "".

    A value like some other of eager's was computed rightly and only brought to the wrong place.
    """
    if name in run.graph.inputs or name not in run.graph.maker or run.graph.owner(name):
        return ""
    result = run.values.get(name)
    if result is not None and (not floating(result) or _known(run, result, expected)):
        return ""
    node = run.graph.nodes[run.graph.maker[name]]
    owner = str(node.name).partition("/")[0]
    if owner in run.candidate.rewritten:
        return owner
    before = (blamed(run, value, None) for value in node.input if value)
    return next((culprit for culprit in before if culprit), node.name or f"{node.op_type} → {name}")


def _known(run: TrialRun, result: Any, expected: Tensor | None) -> bool:
    """Whether eager computes this value somewhere, not counting the one that should be here."""
    shape, dtype = tuple(result.shape), dtype_name(result)
    for i, value in enumerate(run.eager.values):
        if tuple(value.shape) != shape or dtype_name(value) != dtype:
            continue
        if expected is not None and value.shape == expected.shape and torch.equal(value, expected):
            continue
        if not run.differs(("any", "", i), value, result):
            return True
    return any(
        tuple(t.shape) == shape and dtype_name(t) == dtype and np.array_equal(array(t), array(result), equal_nan=True)
        for t in run.tensors
    )
