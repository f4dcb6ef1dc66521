"""One trial of one model: what eager gives on it against what the model gives."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.file_format import algebra_in, forms_in
from fusion_onnx.runtime import Session, TensorInfo, read_header
from fusion_onnx.verification.compare import compare
from fusion_onnx.verification.locate.graph import Graph, Group
from fusion_onnx.verification.locate.location import Location
from fusion_onnx.verification.locate.noise import Noise, allowed
from fusion_onnx.verification.subject import Subject
from fusion_onnx.verification.tolerance import SAME_BITS, Array, Tolerance, array, derived, dtype_name
from fusion_onnx.verification.trace import Call, Key, Trace, traced
from fusion_onnx.verification.trials import Trial

if TYPE_CHECKING:
    import onnx


class Candidate:
    """A model that was exported from a module, of which every trial is one run.

    example: what eager gives on the inputs that `locate` was called with. graph: the model's, cut into its fusions.
    """

    def __init__(self, subject: Subject, proto: "onnx.ModelProto", providers: Any) -> None:
        self.subject, self.providers = subject, providers
        if providers != "cpu":
            Session(proto, providers, fuse=False)  # a provider that cannot be had is no fault of the file
        self.infos = read_header(proto.SerializeToString()).inputs
        self.example = traced(subject.run, subject.arguments.args)
        # the CPU has no kernels for bfloat16
        home = providers if any(info.dtype == "bfloat16" for info in self.infos) else "cpu"
        metadata = {p.key: p.value for p in proto.metadata_props}
        self.forms, self.rewritten = forms_in(metadata), algebra_in(metadata)
        # algebra gives a rewritten fusion other inputs than eager's: it is held to its output alone
        self.graph = Graph(proto, list(self.example.calls), home, self.rewritten)

    def trace(self, trial: Trial) -> Trace:
        """Return what eager gives on a trial, each fusion in the form that the file says it has.

        Raises what the module does.
        """
        arguments = trial.arguments
        own = arguments is self.subject.arguments
        trace = self.example if own else traced(self.subject.run, arguments.args)
        calls = {n: replace(c, written=c.fusion.as_written(self.forms, n)) for n, c in trace.calls.items()}
        return replace(trace, calls=calls)

    def located(self, group: Group | None, fault: str, trial: str, detail: str, node: str = "") -> Location:
        """Return a location in a fusion; `node` where it is not the fusion's own."""
        name = group.name if group else ""
        call = self.example.calls.get(name or node)
        path, strategy = ("", "") if call is None else (call.path, call.fusion.strategy())
        return Location(node or name, path, strategy, fault, trial, detail)

    def fixed_axis(self, trial: str, info: TensorInfo, axis: int, size: int) -> Location:
        """Return the location of an input with a fixed axis: the first fusion that it reaches."""
        detail = f"the file fixes axis {axis} of the input {info}; eager takes {size} there."
        return self.located(self.graph.first_group_after(info.name), "interface", trial, detail, info.name)


class TrialRun:
    """One trial: what eager gives on it against what the model gives.

    values: the model's values by their names, once it has run; noise: how far eager's own are from float64.
    """

    def __init__(self, candidate: Candidate, trial: Trial, eager: Trace, noise: Noise) -> None:
        self.candidate, self.graph, self.name = candidate, candidate.graph, trial.name
        self.eager, self.tensors, self.noise = eager, trial.arguments.tensors, noise
        self.values: dict[str, Any] = {}

    def differs(self, key: Key, eager: Tensor, model: Any) -> str:
        """Return what differs from one of eager's values by more than its noise; empty where nothing does."""
        return self.compared(eager, model, self.noise.allowed(key, eager))

    def compared(self, eager: Any, model: Any, allowed: Array) -> str:
        """Return what differs, dtype first and the error last; empty where nothing does."""
        a, b = array(eager), array(model)
        limits = allowed if a.shape == b.shape else np.zeros(())
        finding = compare(self.name, "", (dtype_name(eager), dtype_name(model)), a, b, limits)
        return finding.detail if finding.failed else ""

    def located(self, group: Group | None, fault: str, detail: str, node: str = "") -> Location:
        """Return a location in this trial."""
        return self.candidate.located(group, fault, self.name, detail.strip().rstrip(".") + ".", node)


def limits_of(call: Call, *, bits: bool = False) -> Tolerance:
    """Return what eager and a right computation of a fusion may each be off: the strategy's bound.

    Where it states none, what eager is measured to lose. With bits, nothing where the order of operations is fixed.
    """
    bound = derived(call.written, call.xs, call.w)
    if bound is None:
        half = allowed(call.y, _lost(call)) / 2
        return Tolerance(None, half, half, "measured")
    if bits and call.written.bitwise and call.y.dtype in SAME_BITS:
        zero = np.zeros_like(bound.reference)
        return Tolerance(bound.exact, zero, zero, bound.rule)
    return bound


def _lost(call: Call) -> float | None:
    try:
        wide, buffers = [x.double() for x in call.xs], [b.double() for b in call.buffers]
        with torch.no_grad():
            exact = call.fusion.evaluate(wide, None if call.w is None else call.w.double(), buffers)
    except Exception:  # whatever a strategy of somebody else's may raise
        return None
    with np.errstate(invalid="ignore"):  # inf - inf
        error = np.abs(array(call.y) - array(exact))
    return float(error[np.isfinite(error)].max(initial=0.0))


def floating(value: Any) -> bool:
    """Whether a tensor or an array holds floating-point numbers."""
    return "float" in dtype_name(value)
