"""One trial of one model: what eager gives on it against what the model gives, and where a difference lies."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.forms import algebra_in, forms_in
from fusion_onnx.runtime import Session, TensorInfo, read_header
from fusion_onnx.verification.compare import compare
from fusion_onnx.verification.locate.graph import Graph, Group
from fusion_onnx.verification.locate.recording import Call, Key, Noise, Recording, allowed, dtype_of, record
from fusion_onnx.verification.repeatable import Repeatable
from fusion_onnx.verification.tolerance import Array, Tolerance, array, derived
from fusion_onnx.verification.trials import Trial, tensors_of

if TYPE_CHECKING:
    import onnx

_BITWISE = (torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Location:
    """Where a model starts to differ.

    node: the ONNX node's name, "pick", or "pick/min_2" inside a body. fusion: the fusion's path in the module, the
    strategy's name for a bare one, empty for an ordinary operator. strategy: its name in the registry. fault: one of

    - weights    the file holds other parameters or buffers than the module;
    - wiring     something else arrives at the fusion than in eager;
    - body       the function attached to it computes something else;
    - runtime    ONNX Runtime computes the body differently from the ONNX standard;
    - device     the providers asked for differ from the CPU;
    - operator   an operator outside the fusions differs;
    - interface  the file's inputs or outputs are not the module's.

    case: at which sizes or values. detail: one sentence with the numbers.
    """

    node: str
    fusion: str
    strategy: str
    fault: str
    case: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        owner = f" of the fusion {self.fusion!r} ({self.strategy})" if self.fusion else ""
        return f"{self.fault} at node {self.node!r}{owner}, {self.case}: {self.detail}"


class Subject:
    """A module and the model that was exported from it, of which every trial is one run.

    given: what eager gives on the inputs that `locate` was called with. graph: the model's, its fusions found.
    """

    def __init__(self, run: Repeatable, proto: "onnx.ModelProto", args: tuple[Any, ...], providers: Any) -> None:
        self.run, self.module, self.args, self.providers = run, run.module, args, providers
        if providers != "cpu":
            Session(proto, providers, fuse=False)  # a provider that cannot be had is no fault of the file
        self.infos = read_header(proto.SerializeToString()).inputs
        self.given = record(run, args)
        # the CPU has no kernels for bfloat16
        home = providers if any(info.dtype == "bfloat16" for info in self.infos) else "cpu"
        metadata = {p.key: p.value for p in proto.metadata_props}
        self.forms, self.rewritten = forms_in(metadata), algebra_in(metadata)
        # algebra gives a rewritten fusion other inputs than eager's: it is held to its output alone
        self.graph = Graph(proto, list(self.given.calls), home, self.rewritten)

    def as_written(self, eager: Recording) -> Recording:
        """Return the recording with each fusion in the form that the file says it has."""
        calls = {n: replace(c, fusion=c.fusion.as_written(self.forms, n)) for n, c in eager.calls.items()}
        return replace(eager, calls=calls)

    def located(self, group: Group | None, fault: str, case: str, detail: str, node: str = "") -> Location:
        """Return a location in a fusion; `node` where it is not the fusion's own."""
        name = group.name if group else ""
        call = self.given.calls.get(name or node)
        path, strategy = ("", "") if call is None else (call.path, call.fusion.strategy())
        return Location(node or name, path, strategy, fault, case, detail)

    def fixed_axis(self, case: str, info: TensorInfo, axis: int, size: int) -> Location:
        """Return the location of an input with a fixed axis: the first fusion that it reaches."""
        detail = f"the file fixes axis {axis} of the input {info}; eager takes {size} there."
        return self.located(self.graph.first_group_after(info.name), "interface", case, detail, info.name)


class Case:
    """One trial: what eager gives on it against what the model gives.

    values: the model's values by their names, once it has run; noise: how far eager's own are from float64.
    """

    def __init__(self, subject: Subject, trial: Trial, eager: Recording, noise: Noise) -> None:
        self.subject, self.graph, self.name = subject, subject.graph, trial.case
        self.eager, self.tensors, self.noise = subject.as_written(eager), tensors_of(trial.args), noise
        self.values: dict[str, Any] = {}

    def differs(self, key: Key, eager: Tensor, model: Any) -> str:
        """Return what differs from one of eager's values by more than its noise; empty where nothing does."""
        return self.compared(eager, model, self.noise.allowed(key, eager))

    def compared(self, eager: Any, model: Any, allowed: Array) -> str:
        """Return what differs, dtype first and the error last; empty where nothing does."""
        a, b = array(eager), array(model)
        limits = allowed if a.shape == b.shape else np.zeros(())
        finding = compare(self.name, "", (dtype_of(eager), dtype_of(model)), a, b, limits)
        return finding.detail if finding.failed else ""

    def found(self, group: Group | None, fault: str, detail: str, node: str = "") -> Location:
        """Return a location in this trial."""
        return self.subject.located(group, fault, self.name, detail.strip().rstrip(".") + ".", node)


def limits_of(call: Call, *, bits: bool = False) -> Tolerance:
    """Return what eager and a right computation of a fusion may each be off: the strategy's bound.

    Where it states none, what eager is measured to lose. With bits, nothing where the order of operations is fixed.
    """
    found = derived(call.fusion, call.xs, call.w)
    if found is None:
        half = allowed(call.y, _lost(call)) / 2
        return Tolerance(None, half, half, "measured")
    if bits and call.fusion.bitwise and call.y.dtype in _BITWISE:
        zero = np.zeros_like(found.reference)
        return Tolerance(found.exact, zero, zero, found.rule)
    return found


def _lost(call: Call) -> float | None:
    try:
        wide, held = [x.double() for x in call.xs], [b.double() for b in call.buffers]
        with torch.no_grad():
            exact = call.fusion._evaluate(wide, None if call.w is None else call.w.double(), held)
    except Exception:  # whatever a strategy of somebody else's may raise
        return None
    with np.errstate(invalid="ignore"):  # inf - inf
        lost = np.abs(array(call.y) - array(exact))
    return float(lost[np.isfinite(lost)].max(initial=0.0))


def floating(value: Any) -> bool:
    """Whether a tensor or an array holds floating-point numbers."""
    return "float" in dtype_of(value)
