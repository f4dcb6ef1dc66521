"""`locate`: where a model starts to differ from its eager module, and what is at fault there.

The module's fusions are taken in the graph's order. For each, in this order: its weights, what arrives at it, its body
alone (onnx.reference on eager's inputs), ONNX Runtime on the same body, and the providers that were asked for. What
passes all of that is right, so the first that does not is where the difference starts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.contract import Fusion
from fusion_onnx.forms import algebra_in, forms_in
from fusion_onnx.layer import FusionLayer
from fusion_onnx.runtime import InputError, Session, TensorInfo, read_header
from fusion_onnx.verification import locate_eager as eager_side
from fusion_onnx.verification import trials
from fusion_onnx.verification.compare import compare
from fusion_onnx.verification.eager import evaluating
from fusion_onnx.verification.locate_body import wrong_node
from fusion_onnx.verification.locate_eager import Call, Key, Noise, Recording, dtype_of, record
from fusion_onnx.verification.locate_graph import Graph, Group, NodeError, loaded
from fusion_onnx.verification.tolerance import Array, Tolerance, array, derived, resampled
from fusion_onnx.verification.trials import Trial, tensors_of

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


def locate(
    module: torch.nn.Module, model: Any, inputs: Any, providers: Any = "cpu", *, battery: bool = False
) -> Location | None:
    """Return where an exported model starts to differ from its eager module; None where it does not.

    Tried are the sizes that `verify` tries: the inputs' own, 2 s + 1, 1, and 0 for a bare fusion; the first at which
    something differs is reported.

    Args:
        module: the module the model was exported from.
        model: a path, bytes, an onnx.ModelProto, or the result of `export`.
        inputs: a tuple of the module's positional arguments; give the values at which `verify` failed.
        providers: as `Session` takes them.
        battery: also on the battery's hostile values, class by class, where no size shows a difference.

    Raises:
        SessionError: a provider cannot be had. FusionError: the inputs break a fusion's contract.
    """
    module = getattr(module, "_orig_mod", module)
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    proto = loaded(model)
    with evaluating(module):
        search = _Search(module, proto, args, providers)
        return search.first() or (search.first_hostile() if battery else None)


class _Search:
    """The fusions of one model, gone through at one size after the other."""

    def __init__(self, module: torch.nn.Module, proto: Any, args: tuple[Any, ...], providers: Any) -> None:
        self.module, self.args, self.providers = module, args, providers
        if providers != "cpu":
            Session(proto, providers, fuse=False)  # a provider that cannot be had is no fault of the file
        self.infos = read_header(proto.SerializeToString()).inputs
        self.given = record(module, args)
        home = (
            providers if any(info.dtype == "bfloat16" for info in self.infos) else "cpu"
        )  # which has no kernels for it
        metadata = {p.key: p.value for p in proto.metadata_props}
        self.forms, self.rewritten = forms_in(metadata), algebra_in(metadata)
        # algebra gives a rewritten fusion other inputs than eager's: it is held to its output alone
        self.graph = Graph(proto, list(self.given.calls), home, self.rewritten)

    def as_written(self, eager: Recording) -> Recording:
        """Return the recording with each fusion in the form that the file says it has."""
        calls = {n: replace(c, fusion=c.fusion.as_written(self.forms, n)) for n, c in eager.calls.items()}
        return replace(eager, calls=calls)

    def first(self) -> Location | None:
        count = len(tensors_of(self.args))
        if count != len(self.infos):
            detail = f"the model takes {len(self.infos)} inputs, the module is given {count} tensors."
            return Location(", ".join(self.graph.inputs), "", "", "interface", "all sizes", detail)
        tried: list[tuple[Trial, Recording | Location]] = []
        for trial in trials.sizes(self.module, self.infos, self.args):
            try:
                tried.append((trial, self.given if trial.args is self.args else record(self.module, trial.args)))
            except Exception:
                fixed = self._fixed(trial.case, trial.args)  # else the module is not made for this size
                tried += [(trial, fixed)] if fixed else []
        noise = self._noise([(trial.args, result) for trial, result in tried if isinstance(result, Recording)])
        for trial, result in tried:
            found = result if isinstance(result, Location) else _Case(self, trial, result, noise).first()
            if found:
                return found
        return None

    def first_hostile(self) -> Location | None:
        """Return the first difference on the battery's values; each class has a noise of its own."""
        for trial in [*trials.hostile(self.module, self.infos, self.args), *trials.many_rows(self.infos, self.args)]:
            try:
                recording = record(self.module, trial.args)
            except Exception:  # not made for these values
                continue
            found = _Case(self, trial, recording, self._noise([(trial.args, recording)])).first()
            if found:
                return found
        return None

    def _noise(self, runs: list[tuple[tuple[Any, ...], Recording]]) -> Noise:
        """Measure the runs and four more with values drawn from the largest's own: one may lose nothing by luck."""
        args = max((args for args, _ in runs), key=lambda a: sum(t.numel() for t in tensors_of(a)))
        generator = torch.Generator().manual_seed(1)
        noise = Noise(self.module)
        for run in runs:
            noise.measure(*run)
        for _ in range(4):
            leaves, spec = pytree.tree_flatten(args)
            drawn = [resampled(t, 0, len(t), generator) if isinstance(t, Tensor) and t.ndim else t for t in leaves]
            again = pytree.tree_unflatten(drawn, spec)
            noise.measure(again, record(self.module, again))
        return noise

    def _fixed(self, case: str, args: tuple[Any, ...]) -> Location | None:
        """Return the input whose axis the file fixes, where the module only wants it to grow with the others."""
        before, after = tensors_of(self.args), tensors_of(args)
        grown = {(a.shape[i], b.shape[i]) for a, b in zip(before, after, strict=True) for i in range(a.ndim)}
        sizes = {old: new for old, new in grown if old != new}
        fixed = [
            (i, axis, sizes[size])
            for i, info in enumerate(self.infos)
            for axis, size in enumerate(info.shape or ())
            if isinstance(size, int) and size in sizes
        ]
        for chosen in [*([one] for one in fixed), fixed]:
            try:
                record(self.module, _resized(args, chosen))
            except Exception:
                continue
            i, axis, new = chosen[0]
            return self.fixed_axis(case, self.infos[i], axis, new)
        return None

    def fixed_axis(self, case: str, info: TensorInfo, axis: int, size: int) -> Location:
        """Return the location of an input with a fixed axis: the first fusion that it reaches."""
        detail = f"the file fixes axis {axis} of the input {info}; eager takes {size} there."
        return self.located(self.graph.first_group_after(info.name), "interface", case, detail, info.name)

    def located(self, group: Group | None, fault: str, case: str, detail: str, node: str = "") -> Location:
        """Return a location in a fusion; `node` where it is not the fusion's own."""
        call = self.given.calls.get(group.name if group else node)
        path = "" if call is None else call.path
        return Location(
            node or (group.name if group else ""), path, call.fusion.strategy() if call else "", fault, case, detail
        )


class _Case:
    """One trial: what eager gives on it against what the model gives."""

    def __init__(self, search: _Search, trial: Trial, eager: Recording, noise: Noise) -> None:
        self.search, self.graph, self.case = search, search.graph, trial.case
        self.eager, self.tensors, self.noise = search.as_written(eager), tensors_of(trial.args), noise
        self.values: dict[str, Any] = {}

    def first(self) -> Location | None:
        """Return the first difference in the graph's order."""
        try:
            self.values, failing, reason = self.graph.values(self.tensors)
        except InputError as error:
            return self._interface(str(error))
        for group in self.graph.groups:
            if failing is not None and failing < group.first:
                break
            call = self.eager.calls.get(group.name)
            found = call and (self._weights(group, call) or self._wiring(group, call) or self._alone(group, call))
            if found:
                return found
            if failing is not None and failing <= group.last:
                return self._found(group, "runtime", f"ONNX Runtime runs it alone, but not in the model: {reason}")
        if failing is not None:
            node = self.graph.nodes[failing]
            name = node.name or f"{node.op_type} → {node.output[0]}"
            return self._found(None, "operator", f"{node.op_type} does not run: {reason}", name)
        return self._outputs()

    def _interface(self, reason: str) -> Location:
        for info, tensor in zip(self.search.infos, self.tensors, strict=True):
            if dtype_of(tensor) != info.dtype:
                detail = f"the file takes {info}, eager is given {dtype_of(tensor)}."
                group = self.graph.first_group_after(info.name)
                return self._found(group, "interface", detail, "" if group else info.name)
            for axis, size in enumerate(info.shape or ()):
                if isinstance(size, int) and axis < tensor.ndim and size != tensor.shape[axis]:
                    return self.search.fixed_axis(self.case, info, axis, tensor.shape[axis])
        return self._found(None, "interface", reason, ", ".join(self.graph.inputs))

    # --- the fusions ----------------------------------------------------------------------------------------------

    def _weights(self, group: Group, call: Call) -> Location | None:
        if group.inlined:
            return self._inlined_weights(group, call)
        wanted = len(call.xs) + len(call.parameters)
        if len(group.arriving) != wanted:
            detail = f"the node takes {len(group.arriving)} inputs, eager gives it {wanted}."
            return self._found(group, "wiring", detail)
        for name, (label, tensor) in zip(group.arriving[len(call.xs) :], call.parameters, strict=True):
            got = self.values.get(name)
            if got is None or self._same_parameter(call, label, tensor, got):
                continue
            fault = "weights" if self.graph.is_constant(name) else "wiring"
            return self._found(group, fault, f"{label}, which the file calls {name!r}: {_first_change(tensor, got)}.")
        return None

    def _inlined_weights(self, group: Group, call: Call) -> Location | None:
        left = dict(call.parameters)
        unknown = []
        for name in group.arriving:
            got = self.values.get(name)
            if got is None or not self.graph.is_constant(name) or not _floating(got):
                continue
            same = [label for label, p in call.parameters if self._same_parameter(call, label, p, got)]
            for label in same:
                left.pop(label, None)
            unknown += [] if same else [(name, got)]
        for name, got in unknown:
            fitting = [label for label, p in left.items() if p.numel() == array(got).size] or list(left)
            if fitting:
                change = _first_change(left[fitting[0]], got)
                return self._found(group, "weights", f"{fitting[0]}, which the file calls {name!r}: {change}.")
        return None

    def _same_parameter(self, call: Call, label: str, tensor: Tensor, got: Any) -> bool:
        if dtype_of(got) == dtype_of(tensor) and np.array_equal(_flat(tensor), _flat(got), equal_nan=True):
            return True
        if label != "w" or isinstance(got, np.ndarray):
            return False
        return array(got).size == tensor.numel() and not self._differs(("w", call.name, 0), tensor, got.reshape(-1))

    def _wiring(self, group: Group, call: Call) -> Location | None:
        if group.inlined:
            return self._inlined_wiring(group, call)
        for i, (name, x) in enumerate(zip(group.arriving, call.xs, strict=False)):
            got = self.values.get(name)
            found = None if got is None else self._wrong_input(group, call, name, i, x)
            if found:
                return found
        return None

    def _wrong_input(self, group: Group, call: Call, name: str, i: int, x: Tensor) -> Location | None:
        got = self.values[name]
        difference = self._differs(("x", call.name, i), x, got)
        if not difference:
            return None
        source = self.graph.maker_name(name)
        for j, other in enumerate(call.xs):
            if j != i and not self._differs(("x", call.name, j), other, got):
                detail = f"input {i + 1} gets what eager gives to input {j + 1}, from {source!r}: {difference}."
                return self._found(group, "wiring", detail)
        culprit = self._blamed(name, x)
        if culprit:
            detail = f"before input {i + 1} of {group.name!r}: {difference}."
            return self._found(None, "operator", detail, culprit)
        return self._found(group, "wiring", f"input {i + 1} comes from {source!r}: {difference}.")

    def _inlined_wiring(self, group: Group, call: Call) -> Location | None:
        """Check that each value which arrives is one of eager's: which operator reads which is the body's matter."""
        matched = self._matched(group, call)
        missing = [i for i, x in enumerate(call.xs) if not any(x is m for m in matched.values())]
        for name in group.arriving:
            got = self.values.get(name)
            if name in matched or got is None or self.graph.is_constant(name) or not _floating(got):
                continue
            if missing:
                return self._wrong_input(group, call, name, missing[0], call.xs[missing[0]])
            return self._found(group, "wiring", f"{self.graph.maker_name(name)!r} arrives, which eager does not give.")
        return None

    def _matched(self, group: Group, call: Call) -> dict[str, Tensor]:
        """Return which of eager's inputs and parameters each arriving value of an inlined fusion is."""
        matched: dict[str, Tensor] = {}
        for name in group.arriving:
            got = self.values.get(name)
            if got is None or not _floating(got):
                continue
            data = [x for i, x in enumerate(call.xs) if not self._differs(("x", call.name, i), x, got)]
            held = [p for label, p in call.parameters if self._same_parameter(call, label, p, got)]
            for tensor in (held + data if self.graph.is_constant(name) else data + held)[:1]:
                matched[name] = tensor
        return matched

    def _alone(self, group: Group, call: Call) -> Location | None:
        """Check the body, then what runs it, on eager's own inputs."""
        if group.inlined:
            feeds = self._matched(group, call)
        else:
            feeds = dict(zip(group.inputs, [*call.xs, *(p for _, p in call.parameters)], strict=True))
        feeds = {name: tensor.cpu().contiguous() for name, tensor in feeds.items()}
        want, limits = call.y.cpu(), _limits(call, bits=isinstance(self.search.module, (Fusion, FusionLayer)))
        if want.dtype != torch.bfloat16:  # numpy has none, so onnx.reference is not asked
            try:
                values = self.graph.reference(group, feeds)
            except NodeError as error:
                node = wrong_node(group, call, error.values) or error.node
                return self._unknown_to_reference(group, feeds, want, limits, error, node)
            difference = self._compared(want, values[group.output], limits.allowed)
            if difference:
                node = wrong_node(group, call, values)
                return self._found(group, "body", f"the body alone: {difference}.", node)
            return self._runs(group, feeds, limits, values) or self._device(group, feeds, limits)
        return self._device(group, feeds, limits)

    def _unknown_to_reference(
        self, group: Group, feeds: dict[str, Tensor], want: Tensor, limits: Tolerance, error: NodeError, node: str
    ) -> Location | None:
        try:
            difference = self._compared(want, self.graph.alone(group, feeds, "cpu"), limits.allowed)
        except Exception:
            return self._found(group, "body", f"the body alone does not run: {error}.", node)
        return self._found(group, "body", f"the body alone: {difference}.", node) if difference else None

    def _runs(
        self, group: Group, feeds: dict[str, Tensor], limits: Tolerance, values: dict[str, Any]
    ) -> Location | None:
        try:
            got = self.graph.alone(group, feeds, "cpu")
        except Exception as error:
            return self._found(group, "runtime", f"onnx.reference computes the body, ONNX Runtime does not: {error}")
        want = torch.from_numpy(values[group.output])
        difference = self._compared(want, got, 2 * limits.tested)
        if not difference:
            return None
        node = ""
        for name, value in self.graph.alone(group, feeds, "cpu", all_values=True).items():
            right = torch.as_tensor(values[name])
            if _floating(right) and self._compared(right, value, eager_side.allowed(right, None)):
                node = next(n.name for n in group.nodes if name in n.output)
                break
        return self._found(
            group, "runtime", f"ONNX Runtime against onnx.reference (as eager): {difference}.", group.inner(node)
        )

    def _device(self, group: Group, feeds: dict[str, Tensor], limits: Tolerance) -> Location | None:
        providers = self.search.providers
        if providers == "cpu":
            return None
        try:
            right = self.graph.alone(group, feeds, "cpu")
        except Exception:
            return None  # such as bfloat16, for which the CPU has no kernels
        try:
            got = self.graph.alone(group, feeds, providers)
        except Exception as error:
            return self._found(group, "device", f"{providers} does not run the body: {error}")
        difference = self._compared(right, got, 2 * _limits(self.eager.calls[group.name]).tested)
        return (
            self._found(group, "device", f"{providers} against the CPU (as eager): {difference}.")
            if difference
            else None
        )

    # --- what is outside them -------------------------------------------------------------------------------------

    def _outputs(self) -> Location | None:
        graph = self.graph
        for i, name in enumerate(graph.outputs):
            if i >= len(self.eager.outputs):
                break
            want = self.eager.outputs[i]
            difference = self._output_differs(i, name, self.values.get(name, want))
            if not difference:
                continue
            culprit = self._blamed(name, want)
            if culprit:
                return self._found(None, "operator", f"before the output {name!r}: {difference}.", culprit)
            owner = graph.group_of.get(graph.maker.get(name, -1))
            detail = f"the output {name!r} is given the wrong value: {difference}."
            return self._found(owner, "interface", detail, graph.maker_name(name))
        if len(graph.outputs) != len(self.eager.outputs):
            extra = graph.outputs[min(len(self.eager.outputs), len(graph.outputs) - 1)]
            owner = graph.group_of.get(graph.maker.get(extra, -1))
            detail = f"the model gives {len(graph.outputs)} outputs, eager {len(self.eager.outputs)}."
            return self._found(owner, "interface", detail, graph.maker_name(extra))
        return self._whole()

    def _whole(self) -> Location | None:
        """Check the file as it is, with all that ONNX Runtime optimises: every part of it is right."""
        if self.search.providers == "cpu":
            return self._optimised("cpu", "runtime")
        return self._optimised(self.search.providers, "device")

    def _optimised(self, providers: Any, fault: str) -> Location | None:
        graph = self.graph
        try:
            outputs = graph.run(self.tensors, providers)
        except Exception as error:
            return self._found(None, fault, f"the parts run, the whole does not: {error}", ", ".join(graph.outputs))
        for i, (name, got) in enumerate(zip(graph.outputs, outputs, strict=True)):
            difference = self._output_differs(i, name, got)
            if difference:
                owner = graph.group_of.get(graph.maker.get(name, -1))
                detail = f"every part is right, the output {name!r} of the optimised whole is not: {difference}."
                return self._found(owner, fault, detail, graph.maker_name(name))
        return None

    def _output_differs(self, i: int, name: str, got: Any) -> str:
        """Compare an output; one that comes from a fusion may also be off by what that fusion's own bound allows."""
        want = self.eager.outputs[i]
        allowed = self.noise.allowed(("y", "", i), want)
        owner = self.graph.group_of.get(self.graph.maker.get(name, -1))
        call = self.eager.calls.get(owner.name) if owner else None
        if call is not None and call.y.shape == want.shape:
            allowed = allowed + _limits(call).allowed
        return self._compared(want, got, allowed)

    def _blamed(self, name: str, wanted: Tensor | None) -> str:
        """Return the first ordinary node on the way to a wrong value after which eager has nothing like it, or "".

        A value like some other of eager's was computed rightly and only brought to the wrong place.
        """
        if name in self.graph.inputs or name not in self.graph.maker or self.graph.maker[name] in self.graph.group_of:
            return ""
        got = self.values.get(name)
        if got is not None and (not _floating(got) or self._known(got, wanted)):
            return ""
        node = self.graph.nodes[self.graph.maker[name]]
        owner = str(node.name).partition("/")[0]
        if owner in self.search.rewritten:
            return owner
        blamed = [self._blamed(value, None) for value in node.input if value]
        return next((b for b in blamed if b), node.name or f"{node.op_type} → {name}")

    def _known(self, got: Any, wanted: Tensor | None) -> bool:
        """Whether eager computes this value somewhere, not counting the one that should be here."""
        shape, dtype = tuple(got.shape), dtype_of(got)
        for i, value in enumerate(self.eager.values):
            if tuple(value.shape) != shape or dtype_of(value) != dtype:
                continue
            if wanted is not None and value.shape == wanted.shape and torch.equal(value, wanted):
                continue
            if not self._differs(("any", "", i), value, got):
                return True
        return any(
            tuple(t.shape) == shape and dtype_of(t) == dtype and np.array_equal(array(t), array(got), equal_nan=True)
            for t in self.tensors
        )

    # --- comparing ------------------------------------------------------------------------------------------------

    def _differs(self, key: Key, eager: Tensor, model: Any) -> str:
        return self._compared(eager, model, self.noise.allowed(key, eager))

    def _compared(self, eager: Any, model: Any, allowed: Array) -> str:
        """Return what differs, dtype first and the error last; empty where nothing does."""
        a, b = array(eager), array(model)
        limits = allowed if a.shape == b.shape else np.zeros(())
        finding = compare(self.case, "", (dtype_of(eager), dtype_of(model)), a, b, limits)
        return finding.detail if finding.failed else ""

    def _found(self, group: Group | None, fault: str, detail: str, node: str = "") -> Location:
        return self.search.located(group, fault, self.case, detail.strip().rstrip(".") + ".", node)


def _limits(call: Call, *, bits: bool = False) -> Tolerance:
    """Return what eager and a right computation of a fusion may each be off: the strategy's bound.

    Where it states none, what eager is measured to lose. With bits, nothing where the order of operations is fixed.
    """
    found = derived(call.fusion, call.xs, call.w)
    if found is None:
        half = eager_side.allowed(call.y, _lost(call)) / 2
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


def _resized(args: tuple[Any, ...], moved: Sequence[tuple[int, int, int]]) -> tuple[Any, ...]:
    """Return the arguments with (tensor, axis, size) changed; values are drawn from each tensor's own."""
    generator = torch.Generator().manual_seed(0)
    leaves, spec = pytree.tree_flatten(args)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for i, axis, size in moved:
        leaves[where[i]] = resampled(leaves[where[i]], axis, size, generator)
    resized: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
    return resized


def _floating(value: Any) -> bool:
    return "float" in dtype_of(value)


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
