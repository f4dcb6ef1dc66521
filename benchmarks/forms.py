"""Measure every form against the rule that chooses among them: `python -m benchmarks.forms`.

For each strategy and scenario: each form's time (bound calls, the forms in turn), the rule's estimate, the form that
the rule takes, and its regret: how much slower it is than the fastest of the forms it may take. Entrywise strategies
are measured in ONNX Runtime's own operators too, as in a session without fused kernels.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fusion_onnx
from fusion_exporters.errors import ExportError
from fusion_exporters.tuning import median_times
from fusion_onnx import Fusion
from fusion_onnx.bench.rows import SCENARIOS as BENCHED
from fusion_onnx.bench.rows import Scenario, fusions, machine
from fusion_onnx.file_format import facts_in
from fusion_onnx.files import write_file

SCENARIOS = (
    *BENCHED,
    Scenario("k = 2 of (1024, 256)", 2, 1024, 256),
    Scenario("k = 64 of (1024, 256)", 64, 1024, 256),
    Scenario("structured, batch 1", 4, 1, 1024, structured=True),
    Scenario("structured, batch 1024", 4, 1024, 1024, structured=True),
)


def row(name: str, fusion: Fusion, scenario: str, xs: list[Tensor], seconds: float) -> dict[str, Any]:
    """Measure one fusion's forms with constant parameters, as a trained layer has them."""
    torch.manual_seed(0)
    layer = fusion_onnx.FusionLayer(fusion)
    calls, bare, facts = {}, {}, {}
    arrays = [x.numpy() for x in xs]
    for form in fusion.forms():
        try:
            made = fusion_onnx.export(layer, tuple(xs), form=form, verify=False)
        except ExportError:
            continue  # nothing to offer
        threads = torch.get_num_threads()
        calls[form] = fusion_onnx.Session(made, "cpu", threads=threads, spin=False).bind(*arrays)
        if fusion.entrywise:
            bare[form] = fusion_onnx.Session(made, "cpu", threads=threads, fuse=False, spin=False).bind(*arrays)
        facts[form] = _facts(made)
    taken = _facts(fusion_onnx.export(layer, tuple(xs), verify=False))
    times = median_times(calls, seconds)
    forms = fusion.forms()
    best = min(times[form] for form in times if forms[form].drop_in)
    operators = median_times(bare, seconds) if bare else {}
    return {
        "strategy": name,
        "scenario": scenario,
        "forms": {f: {"microseconds": t * 1e6, "rule": facts[f]["microseconds"]} for f, t in times.items()},
        "without kernels": {f: {"microseconds": t * 1e6} for f, t in operators.items()},
        "chosen": taken["form"],
        "regret": times[taken["form"]] / best,
    }


def _facts(made: Any) -> dict[str, Any]:
    (facts,) = facts_in({p.key: p.value for p in made.model.metadata_props}).values()
    return facts


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("strategies", nargs="*")
    parser.add_argument("--scenario", action="append", choices=[s.name for s in SCENARIOS])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    rows = []
    for scenario in SCENARIOS:
        if args.scenario and scenario.name not in args.scenario:
            continue
        for name, fusion in fusions(scenario, args.strategies or list(fusion_onnx.names())):
            if len(fusion.forms()) == 1:
                continue
            xs = [torch.randn(scenario.rows, scenario.width) for _ in range(scenario.k)]
            found = row(name, fusion, scenario.name, xs, args.seconds)
            rows.append(found)
            times = ", ".join(f"{f} {t['microseconds']:,.1f} ({t['rule']:,.1f})" for f, t in found["forms"].items())
            print(f"{scenario.name}: {name}: {times} µs → {found['chosen']}, {found['regret']:.2f}", flush=True)
    if args.output:
        write_file(args.output, json.dumps({"machine": machine(), "rows": rows}, indent=1).encode(), b"\n")


if __name__ == "__main__":
    sys.exit(main())
