"""The ordinary operators, outside the fusions: which of them made a wrong value."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.verification.locate.case import Case, floating
from fusion_onnx.verification.locate.recording import dtype_of
from fusion_onnx.verification.tolerance import array


def blamed(case: Case, name: str, wanted: Tensor | None) -> str:
    """Return the first ordinary node on the way to a wrong value after which eager has nothing like it, or "".

    A value like some other of eager's was computed rightly and only brought to the wrong place.
    """
    if name in case.graph.inputs or name not in case.graph.maker or case.graph.owner(name):
        return ""
    got = case.values.get(name)
    if got is not None and (not floating(got) or _known(case, got, wanted)):
        return ""
    node = case.graph.nodes[case.graph.maker[name]]
    owner = str(node.name).partition("/")[0]
    if owner in case.subject.rewritten:
        return owner
    before = [blamed(case, value, None) for value in node.input if value]
    return next((found for found in before if found), node.name or f"{node.op_type} → {name}")


def _known(case: Case, got: Any, wanted: Tensor | None) -> bool:
    """Whether eager computes this value somewhere, not counting the one that should be here."""
    shape, dtype = tuple(got.shape), dtype_of(got)
    for i, value in enumerate(case.eager.values):
        if tuple(value.shape) != shape or dtype_of(value) != dtype:
            continue
        if wanted is not None and value.shape == wanted.shape and torch.equal(value, wanted):
            continue
        if not case.differs(("any", "", i), value, got):
            return True
    return any(
        tuple(t.shape) == shape and dtype_of(t) == dtype and np.array_equal(array(t), array(got), equal_nan=True)
        for t in case.tensors
    )
