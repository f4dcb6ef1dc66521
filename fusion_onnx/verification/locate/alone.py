"""A fusion alone, on eager's own inputs: its body, ONNX Runtime that runs it, and the providers that were asked for."""

from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.verification.locate.arrivals import matched
from fusion_onnx.verification.locate.body import wrong_node
from fusion_onnx.verification.locate.case import Case, Location, floating, limits_of
from fusion_onnx.verification.locate.graph import Group, NodeError
from fusion_onnx.verification.locate.recording import Call, allowed
from fusion_onnx.verification.tolerance import Tolerance


def wrong_alone(case: Case, group: Group, call: Call) -> Location | None:
    """Check the body, then what runs it, on eager's own inputs."""
    if group.inlined:
        feeds = matched(case, group, call)
    else:
        feeds = dict(zip(group.inputs, [*call.xs, *(p for _, p in call.parameters)], strict=True))
    feeds = {name: tensor.cpu().contiguous() for name, tensor in feeds.items()}
    want, limits = call.y.cpu(), limits_of(call, bits=isinstance(case.subject.module, (Fusion, FusionLayer)))
    if want.dtype != torch.bfloat16:  # numpy has none, so onnx.reference is not asked
        try:
            values = case.graph.reference(group, feeds)
        except NodeError as error:
            node = wrong_node(group, call, error.values) or error.node
            return _unknown_to_reference(case, group, feeds, want, limits, error, node)
        difference = case.compared(want, values[group.output], limits.allowed)
        if difference:
            node = wrong_node(group, call, values)
            return case.found(group, "body", f"the body alone: {difference}.", node)
        return _runs(case, group, feeds, limits, values) or _device(case, group, feeds, limits)
    return _device(case, group, feeds, limits)


def _unknown_to_reference(
    case: Case, group: Group, feeds: dict[str, Tensor], want: Tensor, limits: Tolerance, error: NodeError, node: str
) -> Location | None:
    try:
        difference = case.compared(want, case.graph.alone(group, feeds, "cpu"), limits.allowed)
    except Exception:
        return case.found(group, "body", f"the body alone does not run: {error}.", node)
    return case.found(group, "body", f"the body alone: {difference}.", node) if difference else None


def _runs(
    case: Case, group: Group, feeds: dict[str, Tensor], limits: Tolerance, values: dict[str, Any]
) -> Location | None:
    try:
        got = case.graph.alone(group, feeds, "cpu")
    except Exception as error:
        return case.found(group, "runtime", f"onnx.reference computes the body, ONNX Runtime does not: {error}")
    want = torch.from_numpy(values[group.output])
    difference = case.compared(want, got, 2 * limits.tested)
    if not difference:
        return None
    node = ""
    for name, value in case.graph.alone(group, feeds, "cpu", all_values=True).items():
        right = torch.as_tensor(values[name])
        if floating(right) and case.compared(right, value, allowed(right, None)):
            node = next(n.name for n in group.nodes if name in n.output)
            break
    return case.found(
        group, "runtime", f"ONNX Runtime against onnx.reference (as eager): {difference}.", group.inner(node)
    )


def _device(case: Case, group: Group, feeds: dict[str, Tensor], limits: Tolerance) -> Location | None:
    providers = case.subject.providers
    if providers == "cpu":
        return None
    try:
        right = case.graph.alone(group, feeds, "cpu")
    except Exception:
        return None  # such as bfloat16, for which the CPU has no kernels
    try:
        got = case.graph.alone(group, feeds, providers)
    except Exception as error:
        return case.found(group, "device", f"{providers} does not run the body: {error}")
    difference = case.compared(right, got, 2 * limits_of(case.eager.calls[group.name]).tested)
    return case.found(group, "device", f"{providers} against the CPU (as eager): {difference}.") if difference else None
