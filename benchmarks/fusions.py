"""Measure every strategy against what a user would otherwise run: `python -m benchmarks.fusions`.

All contenders of a row are built first, checked against the float64 result, warmed, and then called one after the
other, round by round, in one process; then each is repeated alone. The floor of a row is a copy of the bytes that the
fusion has to read and write, timed in the same rounds. Times are medians.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fusion_onnx
from benchmarks.contenders import CONTENDERS
from fusion_onnx import Fusion


@dataclass(frozen=True)
class Scenario:
    """k inputs of (rows, width); n where the strategy asks for it."""

    name: str
    k: int
    rows: int
    width: int
    structured: bool = False


SCENARIOS = (
    Scenario("latency, batch 1", 4, 1, 256),
    Scenario("latency, batch 16", 4, 16, 256),
    Scenario("throughput, k = 4", 4, 4096, 1024),
    Scenario("throughput, k = 16", 16, 1024, 256),
    Scenario("structured, n = D = 4096", 4, 64, 1024, structured=True),
)


@dataclass
class Row:
    """Seconds, medians: together (interleaved) and alone; failed: why a contender has none."""

    strategy: str
    scenario: str
    bytes_moved: int
    floor: float
    together: dict[str, float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def fusions(scenario: Scenario, names: list[str]) -> Iterator[tuple[str, Fusion]]:
    """Yield the strategies that a scenario has, made for its sizes."""
    for name in names:
        cls = fusion_onnx.get(name)
        projects = cls.rule_n == "n"
        if scenario.structured and not projects:
            continue
        if projects and not scenario.structured and scenario.rows > 16:
            continue  # the structured scenario is theirs
        options: dict[str, Any] = {}
        if projects:
            options["n"] = scenario.k * scenario.width if scenario.structured else scenario.width
        usual = {"p": 32, "q": 32, "r": 8, "metric": "l2_norm"}
        options |= {option: value for option, value in usual.items() if option in cls.options()}
        yield name, fusion_onnx.create(name, dims=[scenario.width] * scenario.k, **options)


def measured(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Return each call's median time, all called in turn; short calls are repeated within a turn."""
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


def copier(count: int) -> Callable[[], Any]:
    """Return a copy that reads and writes `count` bytes in all, on all threads."""
    source = torch.zeros(max(count // 8, 1))
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def row(name: str, fusion: Fusion, scenario: Scenario, contenders: list[str], seconds: float) -> Row:
    """Measure one strategy in one scenario."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(scenario.rows, scenario.width, generator=generator) for _ in range(scenario.k)]
    length = fusion.calculate_l()
    w = torch.randn(length, generator=generator) / max(length, 1) ** 0.5 if length else None
    with torch.no_grad():
        exact = fusion([x.double() for x in xs], None if w is None else w.double()).numpy()
    moved = sum(x.nbytes for x in xs) + exact.size * xs[0].itemsize + (0 if w is None else w.nbytes)
    calls: dict[str, Callable[[], Any]] = {"copy": copier(moved)}
    failed = {}
    for contender in contenders:
        try:
            call = CONTENDERS[contender](fusion, xs, w)
            off = np.abs(np.asarray(call(), np.float64) - exact).max() / max(np.abs(exact).max(), 1e-30)
            if not off < 1e-4:
                raise ArithmeticError(f"it is off by {off:.1e} of the largest entry")
            calls[contender] = call
        except Exception as error:
            failed[contender] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    together = measured(calls, seconds)
    alone = {
        contender: measured({contender: call}, seconds / len(calls))[contender] for contender, call in calls.items()
    }
    return Row(name, scenario.name, moved, together.pop("copy"), together, alone, failed)


def table(rows: list[Row], contenders: list[str]) -> str:
    """Return the rows as Markdown: times in µs, and as a multiple of the floor's."""
    lines = []
    for scenario in dict.fromkeys(r.scenario for r in rows):
        heads = ["strategy", "copy, µs", *(c.replace("_", " ") for c in contenders)]
        lines += [f"### {scenario}", "", f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
        for r in (r for r in rows if r.scenario == scenario):
            cells = [
                f"{r.together[c] * 1e6:,.4g} ({r.together[c] / r.floor:.2f} ×)" if c in r.together else "–"
                for c in contenders
            ]
            lines.append(f"| {r.strategy} | {r.floor * 1e6:,.4g} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Say what it ran on."""
    import onnxruntime

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "fusion-onnx": fusion_onnx.__version__,
    }


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("strategies", nargs="*", default=list(fusion_onnx.names()))
    parser.add_argument("--contender", action="append", choices=list(CONTENDERS))
    parser.add_argument("--scenario", action="append", choices=[s.name for s in SCENARIOS])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row, interleaved")
    parser.add_argument("--output", type=Path, help="folder for fusions.json and fusions.md")
    args = parser.parse_args()
    contenders = args.contender or list(CONTENDERS)
    rows = []
    for scenario in SCENARIOS:
        if args.scenario and scenario.name not in args.scenario:
            continue
        for name, fusion in fusions(scenario, args.strategies or list(fusion_onnx.names())):
            found = row(name, fusion, scenario, contenders, args.seconds)
            rows.append(found)
            shown = ", ".join(f"{c} {t * 1e6:,.1f}" for c, t in found.together.items())
            print(f"{scenario.name}: {name}: copy {found.floor * 1e6:,.1f}, {shown} µs", file=sys.stderr, flush=True)
            for contender, why in found.failed.items():
                print(f"  {contender}: {why}", file=sys.stderr, flush=True)
    text = table(rows, contenders)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        data = {"machine": machine(), "rows": [asdict(r) for r in rows]}
        (args.output / "fusions.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (args.output / "fusions.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
