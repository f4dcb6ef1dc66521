"""A fusion alone, on eager's own inputs: its body, ONNX Runtime that runs it, and the providers that were asked for."""

from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract import Fusion
from fusion_onnx.contract.layer import FusionLayer
from fusion_onnx.verification.locate.body import wrong_node
from fusion_onnx.verification.locate.graph import Group, NodeError
from fusion_onnx.verification.locate.inputs import matched
from fusion_onnx.verification.locate.location import Location
from fusion_onnx.verification.locate.noise import allowed
from fusion_onnx.verification.locate.trial_run import TrialRun, floating, limits_of
from fusion_onnx.verification.tolerance import Tolerance
from fusion_onnx.verification.trace import Call


def wrong_isolated(run: TrialRun, group: Group, call: Call) -> Location | None:
    """Check the body, then what runs it, on eager's own inputs."""
    if group.inlined:
        feeds = matched(run, group, call)
    else:
        feeds = dict(zip(group.inputs, [*call.xs, *(p for _, p in call.parameters)], strict=True))
    feeds = {name: tensor.cpu().contiguous() for name, tensor in feeds.items()}
    by_itself = isinstance(run.candidate.subject.module, (Fusion, FusionLayer))
    expected, limits = call.y.cpu(), limits_of(call, bits=by_itself)
    if expected.dtype != torch.bfloat16:  # numpy has none, so onnx.reference is not asked
        try:
            values = run.graph.reference(group, feeds)
        except NodeError as error:
            node = wrong_node(group, call, error.values) or error.node
            return _unknown_to_reference(run, group, feeds, expected, limits, error, node)
        difference = run.compared(expected, values[group.output], limits.allowed)
        if difference:
            node = wrong_node(group, call, values)
            return run.located(group, "body", f"the body alone: {difference}.", node)
        return _runs(run, group, feeds, limits, values) or _device(run, group, feeds, limits)
    return _device(run, group, feeds, limits)


def _unknown_to_reference(
    run: TrialRun,
    group: Group,
    feeds: dict[str, Tensor],
    expected: Tensor,
    limits: Tolerance,
    error: NodeError,
    node: str,
) -> Location | None:
    try:
        difference = run.compared(expected, run.graph.run_isolated(group, feeds, "cpu"), limits.allowed)
    except Exception:
        return run.located(group, "body", f"the body alone does not run: {error}.", node)
    return run.located(group, "body", f"the body alone: {difference}.", node) if difference else None


def _runs(
    run: TrialRun, group: Group, feeds: dict[str, Tensor], limits: Tolerance, values: dict[str, Any]
) -> Location | None:
    try:
        result = run.graph.run_isolated(group, feeds, "cpu")
    except Exception as error:
        return run.located(group, "runtime", f"onnx.reference computes the body, ONNX Runtime does not: {error}")
    expected = torch.from_numpy(values[group.output])
    difference = run.compared(expected, result, 2 * limits.tested)
    if not difference:
        return None
    node = ""
    for name, value in run.graph.run_isolated(group, feeds, "cpu", all_values=True).items():
        right = torch.as_tensor(values[name])
        if floating(right) and run.compared(right, value, allowed(right, None)):
            node = next(n.name for n in group.nodes if name in n.output)
            break
    return run.located(
        group, "runtime", f"ONNX Runtime against onnx.reference (as eager): {difference}.", group.inner(node)
    )


def _device(run: TrialRun, group: Group, feeds: dict[str, Tensor], limits: Tolerance) -> Location | None:
    providers = run.candidate.providers
    if providers == "cpu":
        return None
    try:
        right = run.graph.run_isolated(group, feeds, "cpu")
    except Exception:
        return None  # such as bfloat16, for which the CPU has no kernels
    try:
        result = run.graph.run_isolated(group, feeds, providers)
    except Exception as error:
        return run.located(group, "device", f"{providers} does not run the body: {error}")
    difference = run.compared(right, result, 2 * limits_of(run.eager.calls[group.name]).tested)
    return (
        run.located(group, "device", f"{providers} against the CPU (as eager): {difference}.") if difference else None
    )
