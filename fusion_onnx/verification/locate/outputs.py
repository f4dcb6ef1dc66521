"""The model's outputs, once every fusion is right: of the parts, then of the whole as ONNX Runtime optimises it."""

from typing import Any

from fusion_onnx.verification.locate.case import Case, Location, limits_of
from fusion_onnx.verification.locate.operators import blamed


def wrong_outputs(case: Case) -> Location | None:
    """Return which output is wrong or missing, once all that comes before it is right."""
    graph = case.graph
    for i, name in enumerate(graph.outputs):
        if i >= len(case.eager.outputs):
            break
        want = case.eager.outputs[i]
        difference = _output_differs(case, i, name, case.values.get(name, want))
        if not difference:
            continue
        culprit = blamed(case, name, want)
        if culprit:
            return case.found(None, "operator", f"before the output {name!r}: {difference}.", culprit)
        owner = graph.owner(name)
        detail = f"the output {name!r} is given the wrong value: {difference}."
        return case.found(owner, "interface", detail, graph.maker_name(name))
    if len(graph.outputs) != len(case.eager.outputs):
        extra = graph.outputs[min(len(case.eager.outputs), len(graph.outputs) - 1)]
        owner = graph.owner(extra)
        detail = f"the model gives {len(graph.outputs)} outputs, eager {len(case.eager.outputs)}."
        return case.found(owner, "interface", detail, graph.maker_name(extra))
    return _whole(case)


def _whole(case: Case) -> Location | None:
    """Check the file as it is, with all that ONNX Runtime optimises: every part of it is right."""
    graph, providers = case.graph, case.subject.providers
    fault = "runtime" if providers == "cpu" else "device"
    try:
        outputs = graph.run(case.tensors, providers)
    except Exception as error:
        return case.found(None, fault, f"the parts run, the whole does not: {error}", ", ".join(graph.outputs))
    for i, (name, got) in enumerate(zip(graph.outputs, outputs, strict=True)):
        difference = _output_differs(case, i, name, got)
        if difference:
            owner = graph.owner(name)
            detail = f"every part is right, the output {name!r} of the optimised whole is not: {difference}."
            return case.found(owner, fault, detail, graph.maker_name(name))
    return None


def _output_differs(case: Case, i: int, name: str, got: Any) -> str:
    """Compare an output; one that comes from a fusion may also be off by what that fusion's own bound allows."""
    want = case.eager.outputs[i]
    allowed = case.noise.allowed(("y", "", i), want)
    owner = case.graph.owner(name)
    call = case.eager.calls.get(owner.name) if owner else None
    if call is not None and call.y.shape == want.shape:
        allowed = allowed + limits_of(call).allowed
    return case.compared(want, got, allowed)
