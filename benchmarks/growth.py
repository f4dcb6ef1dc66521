"""How cost grows: with k from 2 to 64, with rows from 1 to 10^6, and the export of a network with 200 fusions.

`python -m benchmarks.growth` writes growth.json and growth.png into benchmarks/results.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

import fusion_onnx
from fusion_exporters.tuning import median_times
from fusion_onnx.bench.plot import growth
from fusion_onnx.bench.rows import machine

STRATEGIES = ("sum", "weighted_sum", "l2_norm", "median")
RESULTS = Path(__file__).parent / "results"


class Deep(torch.nn.Module):
    """A chain of fusions of different kinds, each of which takes what the one before gave."""

    def __init__(self, count: int) -> None:
        super().__init__()
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("low_rank_concatenation", {"n": 16, "r": 4}),
            ("median", {}),
            ("kronecker_concatenation", {"n": 16, "p": 4}),
            ("learned_weighted_sum", {}),
            ("l2_norm", {}),
        ]
        turns = (kinds[i % len(kinds)] for i in range(count))
        made = [fusion_onnx.create(name, dims=[16, 16, 16], **options) for name, options in turns]
        self.fusions = torch.nn.ModuleList(fusion_onnx.FusionLayer(fusion) for fusion in made)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Go through them all."""
        for fusion in self.fusions:
            x, y = fusion(x, y, x - y), x
        return x


def call(name: str, k: int, rows: int, width: int) -> Any:
    """Return a bound call of a strategy on k inputs (rows, width)."""
    fusion = fusion_onnx.create(name, dims=[width] * k)
    xs = [torch.randn(rows, width) for _ in range(k)]
    made = fusion_onnx.export(fusion, ([x[:8] for x in xs],), verify=False)
    return fusion_onnx.Session(made, "cpu", threads=torch.get_num_threads(), spin=False).bind(*[x.numpy() for x in xs])


def main() -> None:
    """Measure and write."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {"k inputs of (1024, 256)": {}, "rows of 64, k = 4": {}}
    for name in STRATEGIES:
        by_k = [(k, median_times({"": call(name, k, 1024, 256)}, 0.3)[""]) for k in (2, 4, 8, 16, 32, 64)]
        by_rows = [(rows, median_times({"": call(name, 4, rows, 64)}, 0.3)[""]) for rows in (10**i for i in range(7))]
        curves["k inputs of (1024, 256)"][name], curves["rows of 64, k = 4"][name] = by_k, by_rows
    network, inputs = Deep(200).eval(), (torch.randn(4, 16), torch.randn(4, 16))
    start = time.perf_counter()
    fusion_onnx.export(network, inputs, verify=False)
    exported = time.perf_counter()
    fusion_onnx.export(network, inputs)
    export = {"alone": exported - start, "verified": time.perf_counter() - exported}
    data = {"machine": machine(), "seconds": curves, "export of 200 fusions, s": export}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    growth(curves, RESULTS / "growth.png")
    print(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
