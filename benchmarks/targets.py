"""Hold the measured rows to what they are meant to reach: `python -m benchmarks.targets` writes results/targets.md."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import fusion_onnx

RESULTS = Path(__file__).parent / "results"
THROUGHPUT, STRUCTURED, BATCH_1 = "throughput, k = ", "structured, n = D = 4096", "latency, batch 1"
SIZES = {4: "(4096, 1024)", 16: "(1024, 256)"}
_SLOWER = {"median": "its minima and maxima go through the first cache, not through registers alone"}


def main() -> None:
    """Read fusions.json and growth.json, and write the table."""
    data = json.loads((RESULTS / "fusions.json").read_text(encoding="utf-8"))
    rows = {(row["scenario"], row["strategy"]): row for row in data["rows"]}
    names = fusion_onnx.names()
    entrywise = [
        name
        for name in names  # a metric that is measured as another strategy is that strategy once more
        if fusion_onnx.get(name).entrywise and not {*fusion_onnx.get(name).bench_options.values()} & {*names}
    ]
    here = {k: [rows[f"{THROUGHPUT}{k}", name] for name in entrywise] for k in SIZES}
    dense = rows[STRUCTURED, "linear_concatenation"]["operations"]
    projections = [row for (scenario, name), row in rows.items() if scenario == STRUCTURED and name in names]
    structured = [row for row in projections if row["operations"] < dense]
    bound = [r["interleaved"]["ours"] / r["interleaved"]["ours_raw"] for (s, _), r in rows.items() if s == BATCH_1]
    tinybig = [
        r["interleaved"]["tinybig"] / r["interleaved"]["ours"] for r in rows.values() if "tinybig" in r["interleaved"]
    ]
    lines = ["| target | measured | met | if not, why |", "|---|---|---|---|"]
    for k, size in SIZES.items():
        times = [row["interleaved"] for row in here[k]]
        best = [min(t.get(c, 1e9) for c in ("ours", "openvino")) for t in times]
        plain = [t["plain_export"] / t["ours"] for t in times]
        bare = [t["plain_export"] / t["ours_raw"] for t in times]
        cached = "they fit into the last cache, where a copy is fast" if k == 16 else ""
        lines += [
            _line(f"entrywise, k = {k} of {size}: the best provider within 1.15 × a copy of the same bytes",
                  [time / row["copy"] <= 1.15 for time, row in zip(best, here[k], strict=True)], cached),
            _compiled(here[k], best),
            _number("the same on ONNX Runtime's CPU provider: 3 × a plain export, geometric mean",
                    _geometric(plain), 3),
            _line("and no strategy below it", [ratio >= 1 for ratio in plain]),
            _number("the same file without fused kernels, in ONNX Runtime's own operators: 3 ×, geometric mean",
                    _geometric(bare), 3, "each operator is a pass over memory"),
            _line("and no strategy below it", [ratio >= 1 for ratio in bare]),
        ]  # fmt: skip
    lines += [
        _number("structured, n = D = 4096: 15 × the dense form in time, the slowest of them",
                min(_quotient(row, "interleaved", "plain_export") for row in structured), 15),
        _number("structured: 100 × in file size, the largest of them",
                min(row["files"]["plain_export"]["bytes"] / row["files"]["ours"]["bytes"] for row in structured), 100),
        _target("batch 1: a bound call at most 1.3 × ONNX Runtime's own",
                f"{max(bound):.2f} × at most, {statistics.median(bound):.2f} × in the middle", max(bound) <= 1.3),
        _number(f"all strategies and cases ({len(tinybig)}): 10 × tinyBIG, geometric mean", _geometric(tinybig), 10),
    ]  # fmt: skip
    growth = RESULTS / "growth.json"
    if growth.exists():
        grown = json.loads(growth.read_text(encoding="utf-8"))
        for panel, curves in grown["seconds"].items():
            lines.append(_growth(panel, curves))
        seconds = grown["export of 200 fusions, s"]
        said = f"{seconds['alone']:.1f} s, with its verification {seconds['verified']:.1f} s"
        lines.append(_target("export of a network with 200 fusions: under 30 s", said, seconds["alone"] < 30))
    for k, size in SIZES.items():
        columns = ("copy, ms", "ours", "OpenVINO", "compiled", "plain export", "alone: copy", "ours", "compiled")
        lines += ["", f"| entrywise, k = {k} of {size} | {' | '.join(columns)} |"]
        lines.append("|---" + "|---:" * len(columns) + "|")
        for row in here[k]:
            floors = {"interleaved": row["copy"], "isolated": row["isolated"]["copy"]}
            cells = [f"{row['strategy']} | {floors['interleaved'] * 1e3:.2f}"]
            for column, contender in (
                *(("interleaved", c) for c in ("ours", "openvino", "compiled", "plain_export")),
                *(("isolated", c) for c in ("copy", "ours", "compiled")),
            ):
                time = row[column].get(contender)
                beside = "" if contender == "copy" or time is None else f" ({time / floors[column]:.2f} ×)"
                cells.append("–" if time is None else f"{time * 1e3:.2f}{beside}")
            lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "targets.md").write_text(text, encoding="utf-8")
    print(text)


def _target(target: str, measured: str, met: bool, reason: str = "") -> str:
    return f"| {target} | {measured} | {'yes' if met else 'no'} | {'' if met else reason} |"


def _line(target: str, met: list[bool], reason: str = "") -> str:
    return _target(target, f"{sum(met)} of {len(met)} strategies", all(met), reason)


def _compiled(rows: list[dict[str, Any]], best: list[float]) -> str:
    """Name the strategies that are slower than torch.compile, and say whether they are when repeated alone."""
    slower, reasons = [], []
    for row, time in zip(rows, best, strict=True):
        name, beside = row["strategy"], time / row["interleaved"]["compiled"]
        alone = row["isolated"]["ours"] / row["isolated"]["compiled"]
        if beside > 1:
            slower.append(f"{name} {beside:.2f} ×, alone {alone:.2f} ×")
            usual = "not when repeated alone" if alone <= 1 else "not known"
            reasons.append(f"{name}: {_SLOWER.get(name, usual)}")
    said = f"{len(rows) - len(slower)} of {len(rows)} strategies" + "".join(f"; {one}" for one in slower)
    return _target("the same: not slower than torch.compile of the best formula", said, not slower, "; ".join(reasons))


def _number(target: str, ratio: float, wanted: float, reason: str = "") -> str:
    return _target(target, f"{ratio:,.1f} ×", ratio >= wanted, reason)


def _growth(panel: str, curves: dict[str, list[tuple[int, float]]]) -> str:
    """Hold time to size, from the smallest to the largest; a tenth more for each doubling is still in proportion."""
    sizes = [size for size, _ in next(iter(curves.values()))]
    factor = sizes[-1] / sizes[0]
    times = {name: points[-1][1] / points[0][1] for name, points in curves.items()}
    said = ", ".join(f"{name} {ratio:,.0f} ×" for name, ratio in times.items())
    reason = "a step where the data leave the last cache; the median's network has more than k comparators for each k"
    met = all(ratio <= factor * 1.1 ** math.log2(factor) for ratio in times.values())
    return _target(
        f"{panel}, {sizes[0]:,} to {sizes[-1]:,}: time grows in proportion ({factor:,.0f} ×)", said, met, reason
    )


def _quotient(row: dict[str, Any], column: str, peer: str) -> float:
    return float(row[column][peer] / row[column]["ours"])


def _geometric(values: list[float]) -> float:
    return float(statistics.geometric_mean(values))


if __name__ == "__main__":
    main()
