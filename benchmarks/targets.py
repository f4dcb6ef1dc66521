"""Hold the measured rows to what they are meant to reach: `python -m benchmarks.targets` writes results/targets.md."""

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
THROUGHPUT, STRUCTURED, BATCH_1 = "throughput, k = 4", "structured, n = D = 4096", "latency, batch 1"
ENTRYWISE = (
    "weighted_sum", "sum", "mean", "max", "min", "prod", "median", "l1_norm", "l2_norm", "learned_weighted_sum",
)  # fmt: skip
FACTORED = (
    "low_rank_concatenation", "kronecker_concatenation", "low_rank_kronecker_concatenation",
    "dual_low_rank_kronecker_concatenation", "random_matrix_adaptation",
)  # fmt: skip


def main() -> None:
    """Read fusions.json and growth.json, and write the table."""
    data = json.loads((RESULTS / "fusions.json").read_text(encoding="utf-8"))
    rows = {(row["scenario"], row["strategy"]): row for row in data["rows"]}
    here = [rows[THROUGHPUT, name] for name in ENTRYWISE]
    structured = [rows[STRUCTURED, name] for name in FACTORED]
    plain = [row["together"]["plain_export"] / row["together"]["ours"] for row in here]
    bound = [r["together"]["ours"] / r["together"]["ours_raw"] for (s, _), r in rows.items() if s == BATCH_1]
    tinybig = [r["together"]["tinybig"] / r["together"]["ours"] for r in rows.values() if "tinybig" in r["together"]]
    best = {row["strategy"]: min(row["together"].get(c, 1e9) for c in ("ours", "openvino")) for row in here}
    lines = [
        "| target | measured | met |",
        "|---|---|---|",
        _line("entrywise, throughput: the best provider within 1.15 × a copy of the same bytes", "{} of {} strategies",
              [best[row["strategy"]] / row["floor"] <= 1.15 for row in here]),
        _line("the same: not slower than torch.compile of the best formula", "{} of {} strategies",
              [best[row["strategy"]] <= row["together"]["compiled"] for row in here]),
        _number("the same on ONNX Runtime's CPU provider: 3 × a plain export, geometric mean", _geometric(plain), 3),
        _line("and no strategy below it", "{} of {} strategies", [ratio >= 1 for ratio in plain]),
        _number("structured, n = D = 4096: 15 × the dense form in time, the slowest of the five",
                min(_quotient(row, "together", "plain_export") for row in structured), 15),
        _number("structured: 100 × in file size, the largest of the five",
                min(row["files"]["plain_export"]["bytes"] / row["files"]["ours"]["bytes"] for row in structured), 100),
        f"| batch 1: a bound call at most 1.3 × ONNX Runtime's own | {max(bound):.2f} × at most, "
        f"{statistics.median(bound):.2f} × in the middle | {'yes' if max(bound) <= 1.3 else 'no'} |",
        _number(f"all strategies and cases ({len(tinybig)}): 10 × tinyBIG, geometric mean", _geometric(tinybig), 10),
    ]  # fmt: skip
    growth = RESULTS / "growth.json"
    if growth.exists():
        seconds = json.loads(growth.read_text(encoding="utf-8"))["export of 200 fusions, s"]
        lines.append(
            f"| export of a network with 200 fusions: under 30 s | {seconds['alone']:.1f} s, with its verification "
            f"{seconds['verified']:.1f} s | {'yes' if seconds['alone'] < 30 else 'no'} |"
        )
    lines += [
        "",
        "| entrywise, k = 4 of (4096, 1024) | copy, ms | ours | ours alone | OpenVINO | compiled | plain export |",
    ]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for row in here:
        times = [row["together"].get(c) for c in ("ours", "openvino", "compiled", "plain_export")]
        times.insert(1, row["alone"].get("ours"))
        cells = ["–" if t is None else f"{t * 1e3:.2f} ({t / row['floor']:.2f} ×)" for t in times]
        lines.append(f"| {row['strategy']} | {row['floor'] * 1e3:.2f} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "targets.md").write_text(text, encoding="utf-8")
    print(text)


def _line(target: str, said: str, met: list[bool]) -> str:
    return f"| {target} | {said.format(sum(met), len(met))} | {'yes' if all(met) else 'no'} |"


def _number(target: str, ratio: float, wanted: float) -> str:
    return f"| {target} | {ratio:,.1f} × | {'yes' if ratio >= wanted else 'no'} |"


def _quotient(row: dict[str, Any], column: str, peer: str) -> float:
    return float(row[column][peer] / row[column]["ours"])


def _geometric(values: list[float]) -> float:
    return float(statistics.geometric_mean(values))


if __name__ == "__main__":
    main()
