"""What it costs to export a fusion by itself: `python -m benchmarks.export` writes export.json and export.md.

For each strategy, in CPU seconds, medians of turns that alternate in one process: translating the fusion to a graph as
the exporter does and by tracing it with torch; the whole of `export(fusion, verify=False)`; and `torch.onnx.export` of
one linear layer, which is as small a network as there is.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fusion_onnx
from fusion_exporters import exporter
from fusion_exporters.graph_inputs import graph_inputs
from fusion_exporters.single import observe, single
from fusion_exporters.translation.tracing import trace
from fusion_onnx.bench.rows import machine

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def calls(fusion: fusion_onnx.Fusion) -> dict[str, Callable[[], Any]]:
    """Return what is timed for one strategy."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(8, width, generator=generator) for width in fusion.dims or ()]
    length = fusion.calculate_l()
    args: tuple[Any, ...] = (xs, torch.randn(length, generator=generator)) if length else (xs,)
    inputs = graph_inputs(fusion, args, "batch", None)
    linear, x = torch.nn.Linear(8, 8).eval(), torch.randn(8, 8)

    def written() -> None:
        with torch.no_grad():
            outputs, seen = observe(fusion, inputs)
        if single(fusion, inputs, outputs, seen, "y", exporter.DEFAULT_OPSET) is None:
            raise ValueError(f"{fusion.get_name()} is not written without tracing")

    return {
        "translated": written,
        "traced": lambda: trace(fusion, inputs, ["y"], exporter.DEFAULT_OPSET),
        "exported": lambda: fusion_onnx.export(fusion, args, verify=False),
        "linear": lambda: torch.onnx.export(
            linear, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
        ),
    }


def row(name: str) -> dict[str, Any]:
    """Measure one strategy at its first case."""
    cls = fusion_onnx.get(name)
    timed = calls(cls.cases[0].create(cls).eval())
    seconds: dict[str, list[float]] = {what: [] for what in timed}
    for turn in range(ROUNDS + 1):
        for what, call in timed.items():
            repeats = 1 if what in ("traced", "linear") else 10
            start = time.process_time()
            for _ in range(repeats):
                call()
            if turn:  # the first warms up
                seconds[what].append((time.process_time() - start) / repeats)
    return {"strategy": name, **{what: statistics.median(times) for what, times in seconds.items()}}


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")
    rows = []
    for name in fusion_onnx.names():
        rows.append(row(name))
        print(_line(rows[-1]), flush=True)
    data = {"machine": machine(), "rows": rows}
    (RESULTS / "export.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    heads = ("strategy", "translated, ms", "traced, ms", "ratio", "whole export, ms", "a linear layer, ms", "ratio")
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|", *map(_line, rows)]
    (RESULTS / "export.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(r: dict[str, Any]) -> str:
    cells = [f"{1e3 * r[what]:.3g}" for what in ("translated", "traced", "exported", "linear")]
    cells.insert(2, f"{r['traced'] / r['translated']:.0f} ×")
    cells.append(f"{r['linear'] / r['exported']:.0f} ×")
    return f"| {r['strategy']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
