"""What a card has to show, in one command: `python -m benchmarks.gpu`, or `make gpu`.

First the tests of test_gpu.py, which are what a card is most likely to find; then every test for a GPU; then each
strategy on the card, written to results/gpu_<card>.json: every form as a bound call, the form that the cost rule takes
as a CUDA graph too, beside eager PyTorch, torch.compile, and a copy on the card of the bytes that the fusion has to
read and write. Results are checked before they are timed. Times are medians of calls in turn, each waited for. The exit
status is that of the tests.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fusion_onnx
from fusion_exporters.errors import ExportError
from fusion_exporters.tuning import median_times
from fusion_onnx import Fusion
from fusion_onnx.bench.contenders import CONTENDERS
from fusion_onnx.bench.rows import SCENARIOS, fusions, machine
from fusion_onnx.file_format import facts_in

ROOT = Path(__file__).parent.parent
DTYPES = ("float32", "float16", "bfloat16")
PEERS = ("eager_cuda", "compiled_cuda")


def why_no_card() -> str:
    """Return why there is no card for ONNX Runtime and PyTorch both; nothing where there is one."""
    status = next((s for s in fusion_onnx.runtime.diagnose() if s.alias == "cuda"), None)
    if status is None:
        return "the installed onnxruntime is built without CUDA"
    return status.reason or ("" if torch.cuda.is_available() else "this PyTorch has no CUDA, or finds no card")


def row(name: str, fusion: Fusion, xs: Sequence[torch.Tensor], provider: str, seconds: float) -> dict[str, Any]:
    """Measure one fusion's forms with constant parameters, on tensors that lie where the provider computes."""
    torch.manual_seed(0)
    layer = fusion_onnx.FusionLayer(fusion).to(xs[0].dtype)
    on_card, host = xs[0].is_cuda, tuple(x.cpu() for x in xs)
    right = layer(host).detach().double()
    tolerance = max(1e-4, 8 * torch.finfo(xs[0].dtype).eps) * float(right.abs().max())
    best = _facts(fusion_onnx.export(layer, host, verify=False, providers=provider))["form"]
    calls: dict[str, Callable[[], Any]] = {}
    failed, rule = {}, {}

    def enter(name: str, build: Callable[[], Callable[[], Any]]) -> None:
        try:
            call = build()
            deviation = float((torch.as_tensor(call()).cpu().double() - right).abs().max())
            if not deviation <= tolerance:
                raise ArithmeticError(f"it is off by {deviation:.1e}")
            calls[name] = call
        except Exception as error:  # a row says what failed in it, and goes on
            failed[name] = f"{type(error).__name__}: {error}"[:300]

    for form in fusion.forms():
        try:
            result = fusion_onnx.export(layer, host, form=form, verify=False, providers=provider)
        except ExportError:
            continue  # nothing to offer
        rule[form] = _facts(result)["microseconds"]
        session = fusion_onnx.Session(result, provider)
        enter(form, lambda session=session: _first(session.bind(*xs)))  # type: ignore[misc]
        if on_card and form == best:
            enter("graph", lambda session=session: _first(session.bind(*xs, cuda_graph=True)))  # type: ignore[misc]
    w = layer.w.detach().reshape(-1) if layer.w is not None else None
    for peer in PEERS if on_card else ():
        enter(peer, lambda peer=peer: CONTENDERS[peer](fusion, list(host), w))  # type: ignore[misc]
    half_bytes = (sum(x.nbytes for x in xs) + xs[0].element_size() * xs[0].shape[0] * fusion.calculate_n()) // 2
    source = torch.zeros(half_bytes, dtype=torch.uint8, device=xs[0].device)
    target = torch.empty_like(source)
    calls["copy"] = lambda: (target.copy_(source), torch.cuda.synchronize() if on_card else None)
    times = median_times(calls, seconds)
    return {
        "strategy": name,
        "dtype": str(xs[0].dtype).removeprefix("torch."),
        "chosen": best,
        "microseconds": {call: t * 1e6 for call, t in times.items()},
        "rule": rule,
        "failed": failed,
    }


def _first(call: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: call()[0]


def _facts(result: Any) -> dict[str, Any]:
    (facts,) = facts_in({p.key: p.value for p in result.model.metadata_props}).values()
    return facts


def tested(*arguments: str) -> int:
    """Run tests for a GPU and return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "-m", "gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> int:
    """Test, measure, print, and write JSON; the exit status is that of the tests, 1 without a card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each row of the benchmark")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="a folder for JSON")
    args = parser.parse_args()
    if reason := why_no_card():
        print(f"No card to test on: {reason}.", file=sys.stderr)
        return 1
    status = tested("tests/test_gpu.py") or tested()
    card, rows = torch.cuda.get_device_name(), []
    path = args.output / f"gpu_{re.sub(r'[^a-z0-9]+', '_', card.lower()).strip('_')}.json"
    for dtype in DTYPES:
        for scenario in SCENARIOS:
            for name, fusion in fusions(scenario, list(fusion_onnx.names())):
                sizes = (scenario.k, scenario.rows, scenario.width)
                xs = [*torch.randn(sizes, device="cuda").to(getattr(torch, dtype))]
                record = {"scenario": scenario.name, **row(name, fusion, xs, "cuda", args.seconds)}
                rows.append(record)
                times = ", ".join(f"{call} {t:,.1f}" for call, t in record["microseconds"].items())
                print(f"{dtype}: {scenario.name}: {name}: {times} µs → {record['chosen']}", flush=True)
            path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
