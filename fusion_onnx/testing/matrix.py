"""Strategies × runtimes: the same exported file, run wherever it can be run, each result compared with eager's.

    >>> result = matrix(["median", "low_rank_concatenation"])
    >>> result.passed, result.cell("median", "tract", "float32").verdict

Every strategy is exported at each of its cases and run on the battery's values, at several sizes and at ranks 1 to 5;
what a runtime gives is compared with eager in the verdict's order, within the strategy's own bound. It stands above
the exporters, which stand above `verification`: that is why it is here.
"""

import contextlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_exporters import export
from fusion_onnx import registry
from fusion_onnx.contract import Case, Fusion
from fusion_onnx.errors import suggestion
from fusion_onnx.file_format import version
from fusion_onnx.verification import backends, battery
from fusion_onnx.verification.compare import histogram, judge, worst_entries
from fusion_onnx.verification.eval_mode import tensors_in
from fusion_onnx.verification.tolerance import MeasuredTolerance, Tolerance, derived
from fusion_onnx.verification.verdict import plain

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "fusion-onnx/matrix/1"
REFERENCE = "torch_eager"
BATCH = 5
RANKS = ((), (2, 3), (2, 1, 2), (1, 2, 1, 3))
SIZES = {"0 rows": 0, "1 row": 1, "17 rows": 17}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Problem:
    """Where a runtime parts from eager, or fails: in which case and on which class of values, and how.

    kind: "differs" or "cannot"; failed: the check that failed, as in `Finding.failed`, or load or run.
    """

    kind: str
    case: str
    values: str
    failed: str
    detail: str
    known: str = ""


@dataclass(frozen=True)
class Worst:
    """An entry with a large share of its tolerance: its place, what eager and the runtime give, and the share ρ."""

    case: str
    values: str
    at: tuple[int, ...]
    eager: float
    model: float
    allowed: float
    ratio: float


@dataclass(frozen=True)
class Cell:
    """A strategy in a runtime, in one dtype.

    verdict: "equal"; "differs"; "cannot" where it runs nothing; "partly" where it runs some and agrees on all it runs;
    "missing" where the runtime is not here. compared: the cases run; elements: the entries compared; same_bits:
    whether all of them came out the same; ratio: ρ, the largest error / tolerance; histogram: how many entries have
    which share of their tolerance, in the bins of `BINS`.
    """

    strategy: str
    runtime: str
    dtype: str
    verdict: str
    compared: int = 0
    elements: int = 0
    same_bits: bool = False
    ratio: float = 0.0
    histogram: tuple[int, ...] = ()
    worst: tuple[Worst, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def unexplained(self) -> tuple[Problem, ...]:
        """The problems that no documented difference accounts for."""
        return tuple(p for p in self.problems if not p.known)


@dataclass(frozen=True)
class RuntimeInfo:
    """A runtime: its title and version, and why it is not here, with what brings it ("" where it is)."""

    name: str
    title: str
    version: str
    missing: str


@dataclass(frozen=True)
class Matrix:
    """What `matrix` found: a cell for each strategy, runtime and dtype; true where all that ran agrees."""

    cells: tuple[Cell, ...]
    runtimes: tuple[RuntimeInfo, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no runtime that is here has a problem that is not documented."""
        return not any(cell.unexplained for cell in self.cells)

    def __bool__(self) -> bool:
        return self.passed

    def cell(self, strategy: str, runtime: str, dtype: str = "float32") -> Cell:
        """Return one cell; raises KeyError where there is none."""
        for cell in self.cells:
            if (cell.strategy, cell.runtime, cell.dtype) == (strategy, runtime, dtype):
                return cell
        raise KeyError((strategy, runtime, dtype))

    @property
    def strategies(self) -> list[str]:
        """The strategies, in order."""
        return list(dict.fromkeys(cell.strategy for cell in self.cells))

    @property
    def dtypes(self) -> list[str]:
        """The dtypes, in order."""
        return list(dict.fromkeys(cell.dtype for cell in self.cells))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data; the schema is documented."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "environment": self.environment,
            "runtimes": [asdict(runtime) for runtime in self.runtimes],
            "cells": [asdict(cell) for cell in self.cells],
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(plain(self.to_dict()), indent=1)

    def tables(self) -> "Iterator[Table]":
        """Yield a rich table for each dtype: strategies down, the runtimes that are here across."""
        from rich.table import Table

        here = [runtime for runtime in self.runtimes if not runtime.missing]
        for dtype in self.dtypes:
            table = Table(title=f"{dtype}: the largest error / tolerance, against eager execution")
            table.add_column("strategy", no_wrap=True)
            for runtime in here:
                table.add_column(runtime.name.replace("_", " "), justify="center")
            for strategy in self.strategies:
                cells = [self.cell(strategy, runtime.name, dtype) for runtime in here]
                table.add_row(strategy, *map(_shown, cells))
            yield table

    def notes(self) -> list[str]:
        """Return a line for the problems of each kind, those alike together, and one for each missing runtime."""
        alike: dict[tuple[str, ...], list[tuple[Cell, Problem]]] = {}
        for cell in self.cells:
            for p in cell.problems:
                alike.setdefault((cell.runtime, cell.dtype, p.kind, p.failed, p.known), []).append((cell, p))
        lines = []
        for (runtime, dtype, kind, failed, known), matches in alike.items():
            strategies = dict.fromkeys(cell.strategy for cell, _ in matches)
            values = dict.fromkeys(p.values for _, p in matches)
            cell, p = matches[0]
            lines.append(
                f"{runtime}, {dtype}: {kind} ({failed}) in {_listed(strategies)} on {_listed(values)}; "
                f"such as {cell.strategy} on {p.values}: {p.detail}" + (f" [known: {known}]" if known else "")
            )
        return lines + [f"{r.name} is missing: {r.missing}" for r in self.runtimes if r.missing]


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shown(cell: Cell) -> str:
    if cell.verdict == "cannot":
        return "[dim]cannot[/]" if not cell.unexplained else "[red]cannot[/]"
    share = "same bits" if cell.same_bits else f"{cell.ratio:.2g}"
    if cell.verdict == "equal":
        return f"[green]{share}[/]"
    colour = "red" if cell.unexplained else "yellow"
    failed = dict.fromkeys(p.failed for p in cell.problems if p.kind == "differs")
    what = share if failed in ({}, {"error": None}) else ", ".join(failed)
    return f"[{colour}]{cell.verdict}: {what}[/]"


@dataclass(frozen=True)
class _Run:
    """One call: the inputs as the graph takes them, eager's result, and what the runtime may be off."""

    values: str
    inputs: list[np.ndarray[Any, Any]]
    eager: Tensor
    tolerance: Tolerance


@dataclass(frozen=True)
class _Program:
    """One exported file with all the calls of it."""

    case: str
    fusion: Fusion
    model: bytes
    runs: list[_Run]


def float_dtype(name: str) -> torch.dtype:
    """Return a dtype that numpy has too, by its name; raise ValueError for another."""
    if name not in ("float16", "float32", "float64"):
        raise ValueError(f"dtypes are float16, float32 and float64; got {name!r}.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def matrix(
    strategies: Sequence[str | type[Fusion]] | None = None,
    runtimes: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    *,
    cases: int | None = None,
    known: Sequence[Any] = (),
    report: Report | None = None,
) -> Matrix:
    """Run strategies in runtimes, and compare each result with eager execution.

    Args:
        strategies: names or classes, yours too; all that are registered if None.
        runtimes: names of `verification.backends.names()`; all if None. One that is not here is reported as missing.
        dtypes: any of "float16", "float32", "float64".
        cases: how many of each strategy's cases to take; all if None.
        known: documented differences, `verification.known.Difference`; a problem that one of them covers is marked.
        report: called with a line of text before each step.

    Raises:
        FusionError: an unknown strategy. ValueError: an unknown runtime or dtype.
    """
    classes = [registry.get(s) if isinstance(s, str) else s for s in strategies or registry.names()]
    selection = list(runtimes or backends.names())
    unknown = [name for name in selection if name not in backends.names()]
    if unknown:
        hint = suggestion(unknown[0], backends.names())
        raise ValueError(f"there is no runtime {unknown[0]!r}; there are {', '.join(backends.names())}.{hint}")
    kinds = {name: float_dtype(name) for name in dtypes}
    report = report or (lambda line: None)
    programs: dict[tuple[str, str], list[_Program]] = {}
    for cls in classes:
        report(f"exporting {cls.strategy()}")
        for name in dtypes:
            programs[cls.strategy(), name] = list(_programs(cls, kinds[name], cls.cases[:cases]))
    infos, cells = [], {}
    for runtime in selection:
        backend = backends.get(runtime)
        missing = backend.missing()
        infos.append(RuntimeInfo(runtime, backend.title, "" if missing else backend.version(), missing))
        with contextlib.ExitStack() as stack:
            handle = None if missing else stack.enter_context(backends.start(runtime))
            for (strategy, dtype), files in programs.items():
                report(f"{runtime}: {strategy}, {dtype}")
                cells[strategy, dtype, runtime] = (
                    Cell(strategy, runtime, dtype, "missing")
                    if handle is None
                    else _cell(strategy, runtime, dtype, files, handle, backend.bitwise, known)
                )
    ordered = [cells[strategy, dtype, runtime] for strategy, dtype in programs for runtime in selection]
    return Matrix(tuple(ordered), tuple(infos), _environment())


def _environment() -> dict[str, str]:
    return {
        "fusion-onnx": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def _programs(cls: type[Fusion], dtype: torch.dtype, cases: Sequence[Case]) -> Iterator[_Program]:
    for number, case in enumerate(cases):
        fusion = case.create(cls).to(dtype).eval()
        length = fusion.calculate_l()
        generator = torch.Generator().manual_seed(number)

        def draw(lead: Sequence[int], dims: Sequence[int] = case.dims, source: Any = generator) -> list[Tensor]:
            return [torch.randn(*lead, d, generator=source).to(dtype) for d in dims]

        w = torch.randn(length, generator=generator).to(dtype) if length else None
        xs = draw((BATCH,))
        labels = [f"x{i}" for i in range(1, len(xs) + 1)] + ["w"] * (w is not None)
        calls = []
        for name, tensors in battery.values([*xs, w] if w is not None else xs, labels):
            new = tensors[-1] if w is not None and name.endswith(" in w") else w  # else the parameters stay ordinary
            calls.append((name, tensors[: len(xs)] if not name.endswith(" in w") else xs, new))
        calls += [(name, draw((rows,)), w) for name, rows in SIZES.items()]
        yield _program(repr(case), fusion, xs, w, calls)
        for lead in RANKS if number == 0 else ():
            again = [(f"rank {len(lead) + 1}", draw(lead), w)]
            yield _program(repr(case), fusion, again[0][1], w, again)


def _program(
    case: str,
    fusion: Fusion,
    xs: list[Tensor],
    w: Tensor | None,
    calls: Sequence[tuple[str, list[Tensor], Tensor | None]],
) -> _Program:
    args: tuple[Any, ...] = (xs,) if w is None else (xs, w)
    model = export(fusion, args, verify=False).model.SerializeToString()

    def outputs(call: tuple[Any, ...]) -> list[Tensor]:
        with torch.no_grad():
            return tensors_in(fusion(*call))

    measured = None
    runs = []
    for values, tensors, parameters in calls:
        call: tuple[Any, ...] = (tensors,) if parameters is None else (tensors, parameters)
        (eager,) = outputs(call)
        tolerance = derived(fusion.in_form(), tensors, parameters) if fusion.is_bare() else None
        if tolerance is None:
            measured = measured or MeasuredTolerance(outputs, fusion)
            (tolerance,) = measured(call, [eager], hostile=True)
        inputs = [t.numpy() for t in (tensors if parameters is None else [*tensors, parameters])]
        runs.append(_Run(values, inputs, eager, tolerance))
    return _Program(case, fusion, model, runs)


def _cell(
    strategy: str,
    runtime: str,
    dtype: str,
    programs: Sequence[_Program],
    handle: backends.Handle,
    bitwise: bool,
    known: Sequence[Any],
) -> Cell:
    problems: list[Problem] = []
    worst: list[Worst] = []
    bins = histogram()
    compared = elements = 0
    largest, same = 0.0, True

    def note(kind: str, program: _Program, values: str, failed: str, detail: str) -> None:
        entry = next((d.id for d in known if d.covers(strategy, runtime, dtype, kind, values, detail)), "")
        problems.append(Problem(kind, program.case, values, failed, detail, entry))

    for program in programs:
        try:
            handle.load(program.model, program.fusion)
        except backends.BackendError as error:
            for run in program.runs:
                note("cannot", program, run.values, "load", str(error))
            continue
        for run in program.runs:
            try:
                results = handle.run(run.inputs)
            except backends.BackendError as error:
                note("cannot", program, run.values, "run", str(error))
                continue
            if len(results) != 1:
                note("differs", program, run.values, "count", f"{len(results)} outputs, eager gives 1")
                continue
            strict = bitwise and program.fusion.bitwise
            tolerance = Tolerance(**{**vars(run.tolerance), "bits": strict})
            finding = judge(run.values, "y", run.eager, results[0], tolerance)
            compared += 1
            elements += run.eager.numel()
            if finding.failed:
                note("differs", program, run.values, finding.failed, finding.detail)
            if finding.failed in ("dtype", "shape"):
                continue
            largest = max(largest, finding.ratio)
            same = same and _same(run.eager, results[0])
            bins += histogram(run.eager, results[0], run.tolerance)
            for at, eager, model, allowed, ratio in worst_entries(run.eager, results[0], run.tolerance, 3):
                worst.append(Worst(program.case, run.values, at, eager, model, allowed, ratio))
    kinds = {p.kind for p in problems}
    verdict = "differs" if "differs" in kinds else "equal" if not kinds else "partly" if compared else "cannot"
    worst.sort(key=lambda entry: -entry.ratio)
    return Cell(
        strategy,
        runtime,
        dtype,
        verdict,
        compared,
        elements,
        same and compared > 0,
        largest,
        tuple(int(n) for n in bins),
        tuple(worst[:5]),
        tuple(problems),
    )


def _same(eager: Tensor, model: Any) -> bool:
    return bool(np.array_equal(eager.numpy(), np.asarray(model), equal_nan=True))
