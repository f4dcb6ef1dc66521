"""The model's outputs, once every fusion is right: of the parts, then of the whole as ONNX Runtime optimises it."""

from typing import Any

from fusion_onnx.verification.locate.location import Location
from fusion_onnx.verification.locate.operators import blamed
from fusion_onnx.verification.locate.trial_run import TrialRun, limits_of


def wrong_outputs(run: TrialRun) -> Location | None:
    """Return which output is wrong or missing, once all that comes before it is right."""
    graph = run.graph
    for i, name in enumerate(graph.outputs):
        if i >= len(run.eager.outputs):
            break
        expected = run.eager.outputs[i]
        difference = _output_differs(run, i, name, run.values.get(name, expected))
        if not difference:
            continue
        culprit = blamed(run, name, expected)
        if culprit:
            return run.located(None, "operator", f"before the output {name!r}: {difference}.", culprit)
        owner = graph.owner(name)
        detail = f"the output {name!r} is given the wrong value: {difference}."
        return run.located(owner, "interface", detail, graph.maker_name(name))
    if len(graph.outputs) != len(run.eager.outputs):
        extra = graph.outputs[min(len(run.eager.outputs), len(graph.outputs) - 1)]
        owner = graph.owner(extra)
        detail = f"the model gives {len(graph.outputs)} outputs, eager {len(run.eager.outputs)}."
        return run.located(owner, "interface", detail, graph.maker_name(extra))
    return _whole(run)


def _whole(run: TrialRun) -> Location | None:
    """Check the file as it is, with all that ONNX Runtime optimises: every part of it is right."""
    graph, providers = run.graph, run.candidate.providers
    fault = "runtime" if providers == "cpu" else "device"
    try:
        outputs = graph.run(run.tensors, providers)
    except Exception as error:
        return run.located(None, fault, f"the parts run, the whole does not: {error}", ", ".join(graph.outputs))
    for i, (name, result) in enumerate(zip(graph.outputs, outputs, strict=True)):
        difference = _output_differs(run, i, name, result)
        if difference:
            owner = graph.owner(name)
            detail = f"every part is right, the output {name!r} of the optimised whole is not: {difference}."
            return run.located(owner, fault, detail, graph.maker_name(name))
    return None


def _output_differs(run: TrialRun, i: int, name: str, result: Any) -> str:
    """Compare an output; one that comes from a fusion may also be off by what that fusion's own bound allows."""
    expected = run.eager.outputs[i]
    allowed = run.noise.allowed(("y", "", i), expected)
    owner = run.graph.owner(name)
    call = run.eager.calls.get(owner.name) if owner else None
    if call is not None and call.y.shape == expected.shape:
        allowed = allowed + limits_of(call).allowed
    return run.compared(expected, result, allowed)
