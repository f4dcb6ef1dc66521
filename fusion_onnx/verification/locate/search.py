"""The search itself: the trials one after the other, and in each the model's parts in the graph's order."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.runtime import InputError
from fusion_onnx.verification import trials
from fusion_onnx.verification.arguments import arguments, opened
from fusion_onnx.verification.eager import evaluating
from fusion_onnx.verification.locate.alone import wrong_alone
from fusion_onnx.verification.locate.arrivals import wrong_inputs, wrong_weights
from fusion_onnx.verification.locate.case import Case, Location, Subject
from fusion_onnx.verification.locate.graph import loaded
from fusion_onnx.verification.locate.outputs import wrong_outputs
from fusion_onnx.verification.locate.recording import Noise, Recording, dtype_of, record
from fusion_onnx.verification.repeatable import Repeatable
from fusion_onnx.verification.tolerance import resampled
from fusion_onnx.verification.trials import Trial, tensors_of


def locate(
    module: torch.nn.Module,
    model: Any,
    inputs: Any = None,
    providers: Any = "cpu",
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
    args = arguments(module, inputs, kwargs)
    proto = loaded(model)
    with torch.random.fork_rng(), evaluating(module) as run:
        subject = Subject(run, proto, args, providers)
        return _over_sizes(subject) or (_over_hostile(subject) if battery else None)


def _over_sizes(subject: Subject) -> Location | None:
    """Return the first difference at the sizes that `verify` tries."""
    count = len(tensors_of(subject.args))
    if count != len(subject.infos):
        detail = f"the model takes {len(subject.infos)} inputs, the module is given {count} tensors."
        return Location(", ".join(subject.graph.inputs), "", "", "interface", "all sizes", detail)
    tried: list[tuple[Trial, Recording | Location]] = []
    for trial in trials.sizes(subject.module, subject.infos, subject.args):
        try:
            given = trial.args is subject.args
            tried.append((trial, subject.given if given else record(subject.run, trial.args)))
        except Exception:
            fixed = _fixed(subject, trial)  # else the module is not made for this size
            tried += [(trial, fixed)] if fixed else []
    noise = _noise(subject.run, [(trial.args, eager) for trial, eager in tried if isinstance(eager, Recording)])
    for trial, result in tried:
        found = result if isinstance(result, Location) else _first(Case(subject, trial, result, noise))
        if found:
            return found
    return None


def _over_hostile(subject: Subject) -> Location | None:
    """Return the first difference on the battery's values; each class has a noise of its own."""
    given = subject.infos, subject.args
    for trial in [*trials.hostile(subject.run, *given), *trials.many_rows(*given)]:
        try:
            eager = record(subject.run, trial.args)
        except Exception:  # not made for these values
            continue
        found = _first(Case(subject, trial, eager, _noise(subject.run, [(trial.args, eager)])))
        if found:
            return found
    return None


def _first(case: Case) -> Location | None:
    """Return the first difference of one trial, in the graph's order."""
    try:
        case.values, failing, reason = case.graph.values(case.tensors)
    except InputError as error:
        return _wrong_interface(case, str(error))
    for group in case.graph.groups:
        if failing is not None and failing < group.first:
            break
        call = case.eager.calls.get(group.name)
        found = call and (
            wrong_weights(case, group, call) or wrong_inputs(case, group, call) or wrong_alone(case, group, call)
        )
        if found:
            return found
        if failing is not None and failing <= group.last:
            return case.found(group, "runtime", f"ONNX Runtime runs it alone, but not in the model: {reason}")
    if failing is not None:
        node = case.graph.nodes[failing]
        name = node.name or f"{node.op_type} → {node.output[0]}"
        return case.found(None, "operator", f"{node.op_type} does not run: {reason}", name)
    return wrong_outputs(case)


def _wrong_interface(case: Case, reason: str) -> Location:
    """Return which input the model does not take as eager does."""
    subject = case.subject
    for info, tensor in zip(subject.infos, case.tensors, strict=True):
        if dtype_of(tensor) != info.dtype:
            detail = f"the file takes {info}, eager is given {dtype_of(tensor)}."
            group = case.graph.first_group_after(info.name)
            return case.found(group, "interface", detail, "" if group else info.name)
        for axis, size in enumerate(info.shape or ()):
            if isinstance(size, int) and axis < tensor.ndim and size != tensor.shape[axis]:
                return subject.fixed_axis(case.name, info, axis, tensor.shape[axis])
    return case.found(None, "interface", reason, ", ".join(case.graph.inputs))


def _noise(run: Repeatable, runs: list[tuple[tuple[Any, ...], Recording]]) -> Noise:
    """Measure the runs and four more with values drawn from the largest's own: one may lose nothing by luck."""
    args = max((args for args, _ in runs), key=lambda a: sum(t.numel() for t in tensors_of(a)))
    generator = torch.Generator().manual_seed(1)
    noise = Noise(run)
    for pair in runs:
        noise.measure(*pair)
    for _ in range(4):
        leaves, spec = pytree.tree_flatten(args)
        drawn = [resampled(t, 0, len(t), generator) if isinstance(t, Tensor) and t.ndim else t for t in leaves]
        again = pytree.tree_unflatten(drawn, spec)
        noise.measure(again, record(run, again))
    return noise


def _fixed(subject: Subject, trial: Trial) -> Location | None:
    """Return the input whose axis the file fixes, where the module only wants it to grow with the others."""
    before, after = tensors_of(subject.args), tensors_of(trial.args)
    grown = {(a.shape[i], b.shape[i]) for a, b in zip(before, after, strict=True) for i in range(a.ndim)}
    sizes = {old: new for old, new in grown if old != new}
    fixed = [
        (i, axis, sizes[size])
        for i, info in enumerate(subject.infos)
        for axis, size in enumerate(info.shape or ())
        if isinstance(size, int) and size in sizes
    ]
    for chosen in [*([one] for one in fixed), fixed]:
        try:
            record(subject.run, _resized(trial.args, chosen))
        except Exception:
            continue
        i, axis, new = chosen[0]
        return subject.fixed_axis(trial.case, subject.infos[i], axis, new)
    return None


def _resized(args: tuple[Any, ...], moved: Sequence[tuple[int, int, int]]) -> tuple[Any, ...]:
    """Return the arguments with (tensor, axis, size) changed; values are drawn from each tensor's own."""
    generator = torch.Generator().manual_seed(0)
    leaves, spec = pytree.tree_flatten(args)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for i, axis, size in moved:
        leaves[where[i]] = resampled(leaves[where[i]], axis, size, generator)
    resized: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
    return resized
