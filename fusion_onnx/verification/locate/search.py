"""The search itself: the trials one after the other, and in each the model's parts in the graph's order."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fusion_onnx.runtime import InputError, Providers
from fusion_onnx.verification import trials
from fusion_onnx.verification.arguments import Arguments, ExampleInputs, arguments, opened
from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.locate.graph import loaded
from fusion_onnx.verification.locate.inputs import wrong_inputs, wrong_weights
from fusion_onnx.verification.locate.isolated import wrong_isolated
from fusion_onnx.verification.locate.location import Location
from fusion_onnx.verification.locate.noise import Noise
from fusion_onnx.verification.locate.outputs import wrong_outputs
from fusion_onnx.verification.locate.trial_run import Candidate, TrialRun
from fusion_onnx.verification.subject import Subject
from fusion_onnx.verification.tolerance import dtype_name
from fusion_onnx.verification.trace import Trace, traced
from fusion_onnx.verification.trials import Trial, resampled, resized

if TYPE_CHECKING:
    from fusion_onnx.runtime import ModelLike


def locate(
    module: torch.nn.Module,
    model: "ModelLike",
    inputs: ExampleInputs | None = None,
    providers: Providers = "cpu",
    *,
    kwargs: Mapping[str, Any] | None = None,
    battery: bool = False,
) -> Location | None:
    """Return where an exported model starts to differ from its eager module; None where it does not.

    Tried are the sizes that `verify` tries: the inputs' own, 2 s + 1, 1, and 0 for a bare fusion; the first at which
    something differs is reported.

    Args:
        module: the module the model was exported from.
        model: a path, bytes, an onnx.ModelProto, or the result of `export`.
        inputs: a tuple of the module's positional arguments, or a mapping of its keyword arguments; give the values
            at which `verify` failed.
        providers: as `Session` takes them.
        kwargs: keyword arguments beside positional ones.
        battery: also on the battery's hostile values, class by class, where no size shows a difference.

    Raises:
        SessionError: a provider cannot be had. FusionError: the inputs break a fusion's contract.
    """
    module = opened(module)
    example = Arguments(arguments(module, inputs, kwargs))
    with torch.random.fork_rng(), EvalMode(module) as run:
        return located(Subject(run, example), model, providers, battery=battery)


def located(subject: Subject, model: "ModelLike", providers: Providers, *, battery: bool = False) -> Location | None:
    """Return where a model starts to differ from a module; None where it does not. See `locate`."""
    candidate = Candidate(subject, loaded(model), providers)
    return _over_sizes(candidate) or (_over_hostile(candidate) if battery else None)


def _over_sizes(candidate: Candidate) -> Location | None:
    """Return the first difference at the sizes that `verify` tries."""
    subject, count = candidate.subject, len(candidate.subject.arguments.places)
    if count != len(candidate.infos):
        detail = f"the model takes {len(candidate.infos)} inputs, the module is given {count} tensors."
        return Location(", ".join(candidate.graph.inputs), "", "", "interface", "all sizes", detail)
    results: list[tuple[Trial, Trace | Location]] = []
    for trial in trials.sizes(subject, candidate.infos):
        try:
            results.append((trial, candidate.trace(trial)))
        except Exception:
            fixed = _fixed(candidate, trial)  # else the module is not made for this size
            results += [(trial, fixed)] if fixed else []
    noise = _noise(subject, [(trial.arguments, eager) for trial, eager in results if isinstance(eager, Trace)])
    for trial, result in results:
        location = result if isinstance(result, Location) else _first(TrialRun(candidate, trial, result, noise))
        if location:
            return location
    return None


def _over_hostile(candidate: Candidate) -> Location | None:
    """Return the first difference on the battery's values; each class has a noise of its own."""
    subject, infos = candidate.subject, candidate.infos
    for trial in [*trials.hostile(subject, infos), *trials.many_rows(subject, infos)]:
        try:
            eager = candidate.trace(trial)
        except Exception:  # not made for these values
            continue
        noise = _noise(subject, [(trial.arguments, eager)])
        location = _first(TrialRun(candidate, trial, eager, noise))
        if location:
            return location
    return None


def _first(run: TrialRun) -> Location | None:
    """Return the first difference of one trial, in the graph's order."""
    try:
        run.values, failing, reason = run.graph.values(run.tensors)
    except InputError as error:
        return _wrong_interface(run, str(error))
    for group in run.graph.groups:
        if failing is not None and failing < group.first:
            break
        call = run.eager.calls.get(group.name)
        location = call and (
            wrong_weights(run, group, call) or wrong_inputs(run, group, call) or wrong_isolated(run, group, call)
        )
        if location:
            return location
        if failing is not None and failing <= group.last:
            return run.located(group, "runtime", f"ONNX Runtime runs it alone, but not in the model: {reason}")
    if failing is not None:
        node = run.graph.nodes[failing]
        name = node.name or f"{node.op_type} → {node.output[0]}"
        return run.located(None, "operator", f"{node.op_type} does not run: {reason}", name)
    return wrong_outputs(run)


def _wrong_interface(run: TrialRun, reason: str) -> Location:
    """Return which input the model does not take as eager does."""
    candidate = run.candidate
    for info, tensor in zip(candidate.infos, run.tensors, strict=True):
        if dtype_name(tensor) != info.dtype:
            detail = f"the file takes {info}, eager is given {dtype_name(tensor)}."
            group = run.graph.first_group_after(info.name)
            return run.located(group, "interface", detail, "" if group else info.name)
        for axis, size in enumerate(info.shape or ()):
            if isinstance(size, int) and axis < tensor.ndim and size != tensor.shape[axis]:
                return candidate.fixed_axis(run.name, info, axis, tensor.shape[axis])
    return run.located(None, "interface", reason, ", ".join(run.graph.inputs))


def _noise(subject: Subject, traces: list[tuple[Arguments, Trace]]) -> Noise:
    """Measure the traces and four more with values drawn from the largest's own: one may lose nothing by luck."""
    arguments = max((arguments for arguments, _ in traces), key=lambda a: sum(t.numel() for t in a.tensors))
    generator = torch.Generator().manual_seed(1)
    noise = Noise(subject.run)
    for other, trace in traces:
        noise.measure(other.args, trace)
    for _ in range(4):
        leaves = list(arguments.leaves)
        for i in arguments.places:
            if leaves[i].ndim:
                leaves[i] = resampled(leaves[i], 0, len(leaves[i]), generator)
        again = arguments.with_leaves(leaves)
        noise.measure(again.args, traced(subject.run, again.args))
    return noise


def _fixed(candidate: Candidate, trial: Trial) -> Location | None:
    """Return the input whose axis the file fixes, where the module only wants it to grow with the others."""
    subject, infos = candidate.subject, candidate.infos
    before, after = subject.arguments.tensors, trial.arguments.tensors
    changes = {(a.shape[i], b.shape[i]) for a, b in zip(before, after, strict=True) for i in range(a.ndim)}
    sizes = {old: new for old, new in changes if old != new}
    fixed = [
        (i, axis, sizes[size])
        for i, info in enumerate(infos)
        for axis, size in enumerate(info.shape or ())
        if isinstance(size, int) and size in sizes
    ]
    for axes in [*([one] for one in fixed), fixed]:
        try:
            traced(subject.run, resized(trial.arguments, axes).args)
        except Exception:
            continue
        i, axis, new = axes[0]
        return candidate.fixed_axis(trial.name, infos[i], axis, new)
    return None
