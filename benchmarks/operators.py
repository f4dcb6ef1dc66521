"""PyTorch's own operator database, each operator behind a sum fusion, exported plainly and by fusion-onnx.

    python -m benchmarks.operators                       # every operator, in three dtypes: hours on one core
    python -m benchmarks.operators --names exp softmax --dtypes float32 --samples 3

Both files run in bare ONNX Runtime beside eager execution, on the database's own values and on the same values in
another order. They are compared here, not by `verify`, whose verdict is held against it. Operators are tried in
processes of their own, as some end theirs; what is in the results already is not tried again. docs/operators.md is the
table of it.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "operators.json"
PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
DTYPES = ("float32", "float64", "float16")
SAMPLES = 2
SECONDS = 120
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-12}
"""Of an entry and the mean of all: far above rounding in a well-conditioned operator, far below a lost term."""


def operators() -> list[Any]:
    """Return the database's entries."""
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def name_of(entry: Any) -> str:
    """Return an entry's name, with its variant's."""
    return f"{entry.name}.{entry.variant_test_name}" if entry.variant_test_name else str(entry.name)


def samples(entry: Any, dtype: Any, count: int) -> list[Any]:
    """Return some of an entry's samples, spread over them, whose first input is a floating tensor with entries."""
    import torch

    if dtype not in entry.supported_dtypes("cpu"):
        return []
    torch.manual_seed(0)
    fit = [
        sample
        for sample in entry.sample_inputs("cpu", dtype, requires_grad=False)
        if isinstance(sample.input, torch.Tensor)
        and sample.input.is_floating_point()
        and sample.input.ndim
        and sample.input.numel()
        and sample.input.layout == torch.strided
    ]
    return fit[:: max(1, len(fit) // count)][:count]


def network(entry: Any, sample: Any, fusion: Any) -> Any:
    """Return a module: the operator, after a sum of two inputs, with the sample's other arguments fixed."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = fusion

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
            fused = a + b if self.fusion is None else self.fusion([a, b])
            return entry.op(fused, *sample.args, **sample.kwargs)

    return Network().eval()


def outcome(entry: Any, sample: Any) -> dict[str, str]:
    """Try one sample: plainly exported, by fusion-onnx, and what `verify` says of that."""
    import torch
    from torch.utils import _pytree as pytree

    import fusion_onnx

    x = sample.input.detach().contiguous()
    args = (x, torch.zeros_like(x))
    other = (x.flatten().flip(0).reshape(x.shape).contiguous(), torch.zeros_like(x))
    runs = []
    module = network(entry, sample, None)
    for inputs in (args, other):
        try:
            with torch.no_grad():
                first, second = (pytree.tree_leaves(module(*(t.clone() for t in inputs))) for _ in range(2))
        except Exception as error:
            if inputs is args:
                return {"eager": f"{type(error).__name__}: {str(error)[:120]}"}
            continue
        if not all(isinstance(y, torch.Tensor) for y in first):
            return {"eager": "gives no tensor"}
        if differing(first, [y.numpy(force=True) for y in second]) if _plain(first) else True:
            return {"eager": "draws random numbers, or gives complex numbers"}
        runs.append((inputs, first))

    def plain() -> bytes:
        program = torch.onnx.export(module, args, dynamo=True, verbose=False)
        return bytes(program.model_proto.SerializeToString())

    def ours() -> bytes:
        fused = network(entry, sample, fusion_onnx.create("sum", dims=[x.shape[-1]] * 2))
        model = fusion_onnx.export(fused, args, dynamic=None, verify=False).model
        made.append((fused, model))
        return bytes(model.SerializeToString())

    made: list[Any] = []
    found = {"plain": tried(plain, runs), "ours": tried(ours, runs)}
    if made:
        try:
            verdict = fusion_onnx.verify(*made[0], args)
            found["verdict"] = "passed" if verdict.passed else f"failed: {verdict.reasons[0][:240]}"
        except Exception as error:
            found["verdict"] = f"error: {type(error).__name__}: {str(error)[:160]}"
    return found


def _plain(outputs: list[Any]) -> bool:
    return not any(y.is_complex() or y.layout is not outputs[0].layout for y in outputs)


def tried(make: Any, runs: list[Any]) -> str:
    """Export, run in bare ONNX Runtime and compare: "right", "wrong: ...", "refused: ..." or "does not load: ..."."""
    import onnxruntime

    try:
        data = make()
    except Exception as error:
        return f"refused: {type(error).__name__}: {str(error)[:200]}"
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return f"does not load: {str(error)[:200]}"
    for inputs, eager in runs:
        fed = dict(zip((i.name for i in session.get_inputs()), (t.numpy() for t in inputs), strict=False))
        try:
            outputs = session.run(None, fed)
        except Exception as error:
            return f"does not run: {str(error)[:200]}"
        if wrong := differing(eager, outputs):
            return f"wrong: {wrong}"
    return "right"


def differing(eager: list[Any], outputs: list[Any]) -> str:
    """Say how outputs differ from eager's."""
    import numpy as np

    if len(eager) != len(outputs):
        return f"{len(outputs)} outputs, eager gives {len(eager)}"
    for y, model in zip(eager, outputs, strict=True):
        if isinstance(model, list):
            return "a sequence"
        name = str(y.dtype).removeprefix("torch.")
        near = (
            y.detach().to(dtype=y.dtype).resolve_conj().numpy(force=True) if name != "bfloat16" else y.float().numpy()
        )
        if str(model.dtype) != str(near.dtype):
            return f"dtype {model.dtype}, eager {near.dtype}"
        if model.shape != near.shape:
            return f"shape {model.shape}, eager {near.shape}"
        if near.dtype.kind != "f":
            if not np.array_equal(model, near):
                return "other whole numbers"
            continue
        if not np.array_equal(np.isnan(model), np.isnan(near)):
            return "NaN elsewhere"
        finite = np.isfinite(near)
        if (
            not np.array_equal(model[~finite & ~np.isnan(near)], near[~finite & ~np.isnan(near)])
            or not np.isfinite(model[finite]).all()
        ):
            return "infinities elsewhere"
        a, b = model[finite].astype(np.float64), near[finite].astype(np.float64)
        scale = np.abs(b) + np.abs(b).mean() if b.size else b
        if (np.abs(a - b) > TOLERANCE[name] * scale).any():
            return f"values: off by {np.abs(a - b).max():.3g} where eager is {b[np.abs(a - b).argmax()]:.3g}"
    return ""


def keys(names: list[str], dtypes: list[str]) -> list[str]:
    """Return what there is to try, operator by operator."""
    entries = operators()
    known = [name_of(entry) for entry in entries]
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"the database has no {', '.join(sorted(unknown))}")
    return [f"{dtype} {name}" for dtype in dtypes for name in known if not names or name in names]


def work(wanted: list[str], count: int) -> None:
    """Try operators one after the other; write a line of JSON for each to stdout."""
    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    entries = {name_of(entry): entry for entry in operators()}
    stdout = sys.stdout
    for key in wanted:
        dtype, _, name = key.partition(" ")
        print(json.dumps([key, None]), file=stdout, flush=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                fit = samples(entries[name], getattr(torch, dtype), count)
                found = [outcome(entries[name], sample) for sample in fit]
            except Exception as error:
                found = [{"eager": f"no samples: {type(error).__name__}: {str(error)[:120]}"}]
        print(json.dumps([key, found]), file=stdout, flush=True)


def results(wanted: list[str], count: int, seconds: float = SECONDS) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Try operators in processes of their own; one that ends its process, or takes too long, is said to."""
    left = list(wanted)
    while left:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.operators", "--work", "--samples", str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(left))
            process.stdin.close()
            begun = ""
            for line in _lines(process, seconds):
                key, found = json.loads(line)
                if found is None:
                    begun = key
                else:
                    left.remove(key)
                    begun = ""
                    yield key, found
            process.kill()
        if left:
            lost = begun or left[0]
            left.remove(lost)
            yield lost, [{"ours": f"ended its process, or took more than {seconds:g} s"}]


def _lines(process: Any, seconds: float) -> Iterator[str]:
    import select

    while True:
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        if not line:
            return
        yield line


def kind(found: list[dict[str, str]]) -> str:
    """Return what an operator's samples come to, the worst of them."""
    worst = "not tried"
    for one in found:
        plain, ours, verdict = (one.get(key, "") for key in ("plain", "ours", "verdict"))
        right = ours == "right"
        state = (
            "not tried"
            if not ours
            else "ended its process"
            if not plain
            else "wrong, passed"
            if ours.startswith("wrong") and verdict == "passed"
            else "right, failed"
            if right and verdict != "passed"
            else "right"
            if right
            else "refused, plainly right"
            if plain == "right"
            else "wrong, seen"
            if ours.startswith("wrong")
            else "refused by both"
        )
        worst = max(worst, state, key=KINDS.index)
    return worst


KINDS = [
    "not tried",
    "right",
    "refused by both",
    "wrong, seen",
    "ended its process",
    "right, failed",
    "refused, plainly right",
    "wrong, passed",
]
MEANINGS = {
    "right": "the file gives eager's numbers, and `verify` passes it",
    "refused by both": "no file: torch.onnx.export has no translation, or its file does not load, run or agree",
    "wrong, seen": "the file gives other numbers, and `verify` fails it, so that none is written",
    "wrong, passed": "the file gives other numbers, and `verify` passes it",
    "right, failed": "the file gives eager's numbers, and `verify` fails it",
    "refused, plainly right": "a plain export is right, ours is not written",
    "ended its process": "PyTorch, its exporter or ONNX Runtime ended the process or took too long",
    "not tried": "it has no floating input, draws random numbers, or gives no tensor or complex ones",
}


def page(data: dict[str, Any]) -> str:
    """Write the table as a page."""
    counts = {dtype: Counter(kind(v) for k, v in data["operators"].items() if k.startswith(dtype)) for dtype in DTYPES}
    lines = [
        "# Operators",
        "",
        "PyTorch's own operator database: each operator behind a `sum` fusion, exported plainly by `torch.onnx.export` "
        "and by fusion-onnx, both files run in bare ONNX Runtime beside eager execution, on the database's values and "
        f"on the same values in another order, up to {data['samples']} samples an operator. "
        f"Versions: {', '.join(f'{k} {v}' for k, v in data['versions'].items())}.",
        "",
        f"| | {' | '.join(DTYPES)} | |",
        f"|---|{'---:|' * len(DTYPES)}---|",
        *(
            f"| {each} | {' | '.join(str(counts[d][each]) for d in DTYPES)} | {MEANINGS[each]} |"
            for each in [*KINDS[1:], KINDS[0]]
        ),
        "",
        "What is not right, and why, by the first sample that shows it:",
        "",
        "| operator | dtype | | plain export | fusion-onnx |",
        "|---|---|---|---|---|",
    ]
    for key, found in data["operators"].items():
        state = kind(found)
        if state in ("right", "not tried"):
            continue
        dtype, _, name = key.partition(" ")
        one = next(one for one in found if kind([one]) == state)
        ours = one.get("ours", "") + (
            f"; verdict {one['verdict']}" if state in ("right, failed", "wrong, seen") else ""
        )
        cells = (f"`{name}`", dtype, state, _cell(one.get("plain", "")), _cell(ours))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split())[:160].replace("|", "\\|").replace("<", "&lt;")


def versions() -> dict[str, str]:
    """Return the versions of what was tried."""
    from importlib.metadata import version

    return {name: version(name).split("+")[0] for name in ("torch", "onnx", "onnxscript", "onnxruntime-gpu")}


def main() -> None:
    """Try what is asked for and not stored, and write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="*", default=[], help="operators; all of the database if left out")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each operator")
    parser.add_argument("--again", action="store_true", help="try those too that the results have already")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.load(sys.stdin), options.samples)
        return
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"operators": {}}
    data = {"versions": versions(), "samples": options.samples, "operators": stored["operators"]}
    wanted = [key for key in keys(options.names, options.dtypes) if options.again or key not in data["operators"]]
    for i, (key, found) in enumerate(results(wanted, options.samples), 1):
        data["operators"][key] = found
        print(f"{i}/{len(wanted)} {key}: {kind(found)}", flush=True)
        if i % 20 == 0 or i == len(wanted):
            data["operators"] = dict(sorted(data["operators"].items()))
            options.output.write_text(json.dumps(data, indent=1) + "\n")
    if options.output == RESULTS:
        PAGE.write_text(page(data))


if __name__ == "__main__":
    main()
