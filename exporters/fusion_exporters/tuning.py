"""`tune`: measure the forms of a module's fusions on this machine, and keep their times for `export(form=...)`."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_exporters.errors import ExportError, VerificationError
from fusion_exporters.exporter import export
from fusion_exporters.forms.choice import provider_of
from fusion_exporters.forms.tuning_file import Timing, Tuning, size_of
from fusion_exporters.single import entrywise_strategy_of
from fusion_onnx.contract.layer import Isolated
from fusion_onnx.runtime import Providers, Session, SessionError
from fusion_onnx.verification.arguments import ExampleInputs, arguments
from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.tolerance import dtype_name
from fusion_onnx.verification.trace import traced

_PAUSE, _TURN = 0.02, 0.02  # s


def tune(
    module: torch.nn.Module,
    example_inputs: ExampleInputs | None,
    providers: Providers = "cpu",
    *,
    kwargs: Mapping[str, Any] | None = None,
    seconds: float = 0.5,
    report: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Measure every form of every fusion in a module, at the example's sizes, on this machine.

    Each form is exported and verified by itself, as the module holds it, and called again and again on the same memory,
    the forms of one fusion in turn. Only forms that give what eager execution gives, bits, Inf and NaN, compete, as
    with `export(form="auto")`; the times of the others are kept beside theirs.

    Args:
        module: any module with fusions in it.
        example_inputs: as `export` takes them, of the size that counts.
        providers: where it is measured, as `Session` takes them.
        kwargs: keyword arguments beside positional ones.
        seconds: for each fusion.
        report: called with each fusion's name as it begins.

    Returns:
        Tuning: `.write(path)` it, and give the path to `export(form=...)`.

    Raises:
        ExportError, FusionError: as `export`. SessionError: the provider cannot be had.
    """
    args = arguments(module, example_inputs, kwargs)
    with EvalMode(module) as run:
        calls = traced(run, args).calls
    tuning, strategy = Tuning(), entrywise_strategy_of(module)
    for name, call in calls.items():
        report(name)
        forms = call.fusion.forms()
        part: torch.nn.Module
        if strategy:
            part, inputs = module, args
        else:
            part, inputs = Isolated(call.fusion, [p for _, p in call.parameters]), tuple(call.xs)
        runs: dict[str, Callable[[], Any]] = {}
        function = ""
        for form in forms:
            try:
                result = export(part, inputs, form={strategy or call.fusion.strategy(): form}, providers=providers)
            except ExportError as error:
                if isinstance(error.__cause__, SessionError):
                    raise error.__cause__ from None
                if isinstance(error, VerificationError) or not runs:
                    raise
                continue  # it has nothing to offer here
            function = function or result.model.functions[0].name
            tensors = [leaf.detach() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
            runs[form] = Session(result, providers, spin=False).bind(*tensors)  # else each disturbs the next
        times = median_times(runs, seconds)
        best = fastest(times, [form for form in times if forms[form].drop_in])
        where = (provider_of(providers), *size_of([x.shape for x in call.xs]), dtype_name(call.xs[0]))
        tuning.entries.append(Timing(name, function, *where, best, times))
    return tuning


def median_times(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Return each call's median time in seconds, all called in turn; short ones are repeated within a turn.

    The order is drawn anew for each round, and a pause lets the threads of the one before go to sleep: PyTorch's spin
    for some milliseconds, on the cores that the next one needs. A turn is long enough not to measure waking up.
    """
    order, orders = list(calls.items()), random.Random(0)
    repeats = {}
    for name, call in calls.items():
        time.sleep(_PAUSE)
        least = math.inf  # of several calls: one that was held up would leave turns of a single call
        for _ in range(5):
            start = time.perf_counter()
            call()
            least = min(least, time.perf_counter() - start)
        repeats[name] = max(1, int(_TURN / max(least, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 5 or time.perf_counter() < end:
        orders.shuffle(order)
        for name, call in order:
            if len(order) > 1:
                time.sleep(_PAUSE)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(samples) for name, samples in times.items()}


def fastest(seconds: Mapping[str, float], order: Sequence[str]) -> str:
    """Return the fastest form; the first in order stays where nothing is faster by more than a twentieth."""
    best = min(order, key=lambda name: seconds[name])
    return best if seconds[best] < 0.95 * seconds[order[0]] else order[0]
