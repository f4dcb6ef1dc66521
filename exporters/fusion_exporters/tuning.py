"""`tune`: measure the forms of a module's fusions on this machine, and keep what was found for `export(form=...)`."""

import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_exporters.inputs import ExportError, VerificationError
from fusion_exporters.single import Isolated
from fusion_onnx.files import write_file
from fusion_onnx.runtime import Session, SessionError
from fusion_onnx.verification.arguments import arguments
from fusion_onnx.verification.repeatable import evaluating
from fusion_onnx.verification.tolerance import dtype_name
from fusion_onnx.verification.trace import traced

FORMAT = 2
_PAUSE, _TURN = 0.02, 0.02  # s


@dataclass(frozen=True)
class Measured:
    """One fusion at one size: its function's name in the first form, where it ran, and each form's seconds.

    rows: of each input; width: the inputs' widths together; dtype: as torch names it, "float32".
    """

    fusion: str
    function: str
    provider: str
    rows: int
    width: int
    dtype: str
    form: str
    seconds: Mapping[str, float]


def _measured(entry: Mapping[str, Any]) -> Measured:
    """Return an entry of a tuning file; raises TypeError, ValueError or KeyError where it is none."""
    found = Measured(**entry)
    texts = found.fusion, found.function, found.provider, found.dtype, found.form
    sizes = found.rows, found.width
    if not all(isinstance(text, str) for text in texts) or not all(
        type(size) is int and 0 <= size < 2**63 for size in sizes
    ):
        raise TypeError(f"entry {dict(entry)!r:.80}")
    return found


@dataclass
class Tuning:
    """What was measured, and on what machine; written as JSON."""

    machine: str = field(default_factory=lambda: f"{platform.machine()}, {os.cpu_count()} cores")
    entries: list[Measured] = field(default_factory=list)

    def form(self, function: str, provider: str, rows: int, width: int, dtype: str) -> str | None:
        """Return the fastest form of a function on a provider at the nearest size; None if it was not measured."""
        same = (function, provider, dtype)
        found = [e for e in self.entries if (e.function, e.provider, e.dtype) == same]

        def distance(entry: Measured) -> float:
            return _ratio(entry.rows, rows) + _ratio(entry.width, width)

        return min(found, key=distance).form if found else None

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file; raises OSError where it cannot be written, or is there and not to be replaced."""
        data = {"format": FORMAT, "machine": self.machine, "fusions": [asdict(e) for e in self.entries]}
        write_file(path, json.dumps(data, indent=1).encode(), b"\n", overwrite=overwrite)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Tuning":
        """Read the file; raises ExportError where it is none that `tune` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ExportError(f"{path} has format {data['format']!r}; this version reads {FORMAT}. Tune again.")
            return cls(str(data["machine"]), [_measured(entry) for entry in data["fusions"]])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(f"{path} is no file of fusion-onnx tune ({error!r:.200}).") from error


def tune(
    module: torch.nn.Module,
    example_inputs: Any,
    providers: Any = "cpu",
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
        report: is told each fusion as it begins.

    Returns:
        Tuning: `.write(path)` it, and give the path to `export(form=...)`.

    Raises:
        ExportError, FusionError: as `export`. SessionError: the provider cannot be had.
    """
    from fusion_exporters.exporter import alone, export, provider_of

    args = arguments(module, example_inputs, kwargs)
    with evaluating(module) as run:
        calls = traced(run, args).calls
    found, bare = Tuning(), alone(module)
    for name, call in calls.items():
        report(name)
        forms = call.fusion.forms()
        subject, inputs = (
            (module, args) if bare else (Isolated(call.fusion, [p for _, p in call.parameters]), tuple(call.xs))
        )
        runs: dict[str, Callable[[], Any]] = {}
        function = ""
        for form in forms:
            try:
                made = export(subject, inputs, form={bare or call.fusion.strategy(): form}, providers=providers)
            except ExportError as error:
                if isinstance(error.__cause__, SessionError):
                    raise error.__cause__ from None
                if isinstance(error, VerificationError) or not runs:
                    raise
                continue  # it has nothing to offer here
            function = function or made.model.functions[0].name
            tensors = [leaf.detach() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
            runs[form] = Session(made, providers, spin=False).bind(*tensors)  # else each disturbs the next
        times = measured(runs, seconds)
        best = fastest(times, [form for form in times if forms[form].drop_in])
        where = (provider_of(providers), *size_of([x.shape for x in call.xs]), dtype_name(call.xs[0]))
        found.entries.append(Measured(name, function, *where, best, times))
    return found


def size_of(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the rows of inputs with these shapes, and their widths together."""
    return math.prod(shapes[0][:-1]), sum(shape[-1] if shape else 1 for shape in shapes)


def _ratio(a: int, b: int) -> float:
    return abs(math.log(max(a, 1) / max(b, 1)))


def measured(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
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
    return {name: statistics.median(found) for name, found in times.items()}


def fastest(seconds: Mapping[str, float], order: Sequence[str]) -> str:
    """Return the fastest form; the first in order stays where nothing is faster by more than a twentieth."""
    best = min(order, key=lambda name: seconds[name])
    return best if seconds[best] < 0.95 * seconds[order[0]] else order[0]
