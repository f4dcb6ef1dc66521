"""`tune`: measure the forms of a module's fusions on this machine, and keep what was found for `export(form=...)`."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion_exporters.inputs import ExportError

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """One fusion at one size: its function's name in the first form, the provider, the rows, each form's seconds."""

    fusion: str
    function: str
    provider: str
    rows: int
    form: str
    seconds: Mapping[str, float]


@dataclass
class Tuning:
    """What was measured, and on what machine; written as JSON."""

    machine: str = field(default_factory=lambda: f"{platform.machine()}, {os.cpu_count()} cores")
    entries: list[Measured] = field(default_factory=list)

    def form(self, function: str, provider: str, rows: int) -> str | None:
        """Return the fastest form of a function on a provider at the nearest number of rows; None if not measured."""
        found = [e for e in self.entries if e.function == function and e.provider == provider]
        if not found:
            return None
        return min(found, key=lambda e: abs(math.log(max(e.rows, 1) / max(rows, 1)))).form

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        data = {"format": FORMAT, "machine": self.machine, "fusions": [asdict(e) for e in self.entries]}
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Tuning":
        """Read the file; raises ExportError where it is none that `tune` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ExportError(f"{path} has format {data['format']!r}; this version reads {FORMAT}. Tune again.")
            return cls(str(data["machine"]), [Measured(**entry) for entry in data["fusions"]])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{path} is no file of fusion-onnx tune ({error!r}).") from error


def measured(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Return each call's median time in seconds, all called in turn; short ones are repeated within a turn."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(2e-4 / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(found) for name, found in times.items()}


def fastest(seconds: Mapping[str, float], order: Sequence[str]) -> str:
    """Return the fastest form; the first in order stays where nothing is faster by more than a twentieth."""
    best = min(order, key=lambda name: seconds[name])
    return best if seconds[best] < 0.95 * seconds[order[0]] else order[0]
