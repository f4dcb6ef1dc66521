"""Torch's own operators behind a fusion, beside eager: `python -m benchmarks.operators`, for hours, from where it was.

Each operator of torch's database of operators, at several of its own samples, in float32, float16 and float64: the
sample's first floating tensor goes through a `sum` fusion, all of its floating tensors are inputs. The module is
exported by `fusion_onnx.export`, and the same with a plain addition by `torch.onnx.export`. ONNX Runtime alone, without
this library's session, runs both files on the sample, on its values in another order, and with NaN, Inf and -Inf in
places, and a comparison that shares nothing with `fusion_onnx.verify` says whether they give what eager execution
gives. `verify` then says what it finds.

    right      the file gives what eager gives, and verify passes it
    known      the same but for NaN or Inf, where verify says that ONNX Runtime's own operator gives something else
    infinite   the same but for Inf, and verify, whose battery tries more, had no row left to put one in
    refused    by both exports, or wrong by the plain export and refused by this library's
    alarm      refused by this library, right by the plain export
    passed     passed by verify, and wrong

Written to docs: operators.json, operators.md. Each operator runs in a process of its own, with a time limit.
"""

import argparse
import itertools
import json
import logging
import multiprocessing
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.utils import _pytree as pytree

import fusion_onnx
from fusion_exporters.translation.tracing import quiet

DOCS = Path(__file__).parent.parent / "docs"
DTYPES = ("float32", "float16", "float64")
SAMPLES, SECONDS, LARGEST = 3, 150, 200_000
TOLERANCE = {torch.float16: 4e-3, torch.float32: 2e-5, torch.float64: 1e-10}
"""Of an entry, relative; and absolute to the typical entry of the output."""
MOST = 4e-3
"""What eager itself may lose: beyond it float64 computes something else, as where random numbers are drawn."""
SIGMOID = 4e-8
"""What ONNX Runtime's Sigmoid in float32 is off by, times the largest input: `docs/differences.md` has it."""
Results = dict[str, dict[str, list[dict[str, str]]]]
OUTCOMES = ("right", "known", "infinite", "refused", "alarm", "passed", "none")


class Operator(torch.nn.Module):
    """An operator at one of its samples, whose first floating tensor comes from `merge`; the others are inputs too."""

    def __init__(self, call: Callable[..., Any], sample: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        leaves, self.spec = pytree.tree_flatten((sample.input, tuple(sample.args), dict(sample.kwargs)))
        self.call = call
        self.leaves: list[Any] = []
        self.places: list[int] = []
        self.inputs: list[torch.Tensor] = []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == dtype:
                self.places.append(place)
                self.inputs.append(leaf.detach().contiguous())
            elif isinstance(leaf, torch.Tensor):
                self.register_buffer(f"leaf_{place}", leaf.detach().clone())
            self.leaves.append(None if isinstance(leaf, torch.Tensor) else leaf)
        if not self.inputs:
            raise LookupError("no floating input")
        shape = self.inputs[0].shape
        self.whole = bool(shape) and 0 not in shape
        width = shape[-1] if self.whole else 1
        self.merge: Callable[[list[torch.Tensor]], torch.Tensor] = (
            fusion_onnx.create("sum", dims=[width, width]) if fused else lambda xs: xs[0] + xs[1]
        )

    def forward(self, *xs: torch.Tensor) -> Any:
        """Return the operator's outputs."""
        leaves = list(self.leaves)
        for place, x in zip(self.places, xs, strict=True):
            leaves[place] = x
        for name, buffer in self.named_buffers():
            leaves[int(name.partition("_")[2])] = buffer
        first = xs[0]
        if self.whole:
            leaves[self.places[0]] = self.merge([first, torch.zeros_like(first)])
        else:  # a number, or nothing at all: the fusion gives the 0 that is added
            zero = torch.zeros(1, 1, dtype=first.dtype)
            leaves[self.places[0]] = first + self.merge([zero, zero]).reshape(())
        x, args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.call(x, *args, **kwargs)


def operators() -> dict[str, Any]:
    """Return torch's database by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    undefined = ("empty", "new_empty")  # what happens to lie in memory
    return {op.formatted_name: op for op in op_db if not op.name.startswith(undefined)}


def samples(op: Any, dtype: torch.dtype, count: int) -> list[Any]:
    """Return so many samples, evenly from all those that have a floating input and are of no great size."""
    torch.manual_seed(0)
    fit = []
    for sample in itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), 200):
        leaves = [x for x in pytree.tree_leaves((sample.input, sample.args, sample.kwargs)) if torch.is_tensor(x)]
        if any(x.dtype == dtype for x in leaves) and sum(x.numel() for x in leaves) <= LARGEST:
            fit.append(sample)
    places = np.unique(np.linspace(0, len(fit) - 1, count).astype(int)) if fit else ()
    return [fit[i] for i in places]


def tensors(result: Any) -> list[torch.Tensor]:
    """Return the tensors of a result, in order."""
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def difference(actual: np.ndarray, expected: torch.Tensor, exact: torch.Tensor | None, slack: float = 0.0) -> str:
    """Say how a file's output differs from eager's; nothing where it does not.

    exact: what eager gives in float64. What eager itself loses, relative to the entry and the typical one, is allowed
    four times; slack: what is allowed beside.
    """
    if expected.is_complex():
        return "a complex output"
    y = expected.detach().resolve_neg().numpy()
    if actual.dtype != y.dtype:
        return f"dtype {actual.dtype}, not {y.dtype}"
    if actual.shape != y.shape:
        return f"shape {actual.shape}, not {y.shape}"
    if y.dtype.kind != "f":
        count = int((actual != y).sum())
        return f"{count} of {y.size} whole numbers differ" if count else ""
    if (np.isnan(actual) != np.isnan(y)).any():
        return "NaN elsewhere"
    infinite = np.isinf(y)
    if (infinite != np.isinf(actual)).any() or (actual[infinite] != y[infinite]).any():
        return "Inf elsewhere"
    finite = np.isfinite(y)
    a, b = actual[finite].astype(np.float64), y[finite].astype(np.float64)
    scale = np.abs(b) + (float(np.median(np.abs(b))) if b.size else 0.0)
    relative = TOLERANCE[expected.dtype]
    if exact is not None and exact.shape == expected.shape and b.size:
        lost = np.abs(b - exact.numpy()[finite]) / np.maximum(scale, 1e-300)
        relative += min(4 * float(lost[np.isfinite(lost)].max(initial=0.0)), MOST)
    allowed = relative * scale + slack + float(np.finfo(y.dtype).smallest_subnormal)
    error = np.abs(a - b)
    if (error > allowed).any():
        i = int(np.argmax(error / np.maximum(allowed, 1e-300)))
        return f"{a[i]:.9g}, not {b[i]:.9g}"
    return ""


def exactly(module: Operator, args: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what eager gives in float64, or nothing where that is no other computation or none at all."""
    if args[0].dtype == torch.float64:
        return []
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            return tensors(module(*[x.double() for x in args]))
    except Exception:
        return []


@dataclass(frozen=True)
class Values:
    """Inputs, what eager gives for them, and what it gives in float64."""

    name: str
    args: tuple[torch.Tensor, ...]
    results: list[torch.Tensor]
    exact: list[torch.Tensor]


NAN, *INFINITE = NOT_FINITE = ("with NaN: ", "with Inf: ", "with -Inf: ")


def _spoilt(x: torch.Tensor, name: str) -> torch.Tensor:
    """Return it with what is not finite in its first and its last place."""
    flat = x.clone().flatten()
    flat[:1] = flat[-1:] = float(name.split()[-1].strip(":").lower())
    return flat.reshape(x.shape)


def values(module: Operator, args: tuple[torch.Tensor, ...]) -> Iterator[Values]:
    """Return what a file is tried on: the sample, its values in another order, and some that are not finite."""
    reverse = tuple(x.flatten().flip(0).reshape(x.shape) for x in args)
    cases = [("", args), ("in another order: ", reverse)]
    cases += [(name, tuple(_spoilt(x, name) for x in args)) for name in NOT_FINITE]
    for name, case in cases:
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                results = tensors(module(*[x.clone() for x in case]))
        except Exception:
            if not name:
                raise
            continue  # outside of the operator's domain
        yield Values(name, case, results, exactly(module, case))


def judged(model: bytes, cases: Sequence[Values]) -> str:
    """Say how a file differs from eager in ONNX Runtime alone; nothing where it does not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [info.name for info in session.get_inputs()]
        for case in cases:
            largest = max((float(x[x.isfinite()].abs().max()) for x in case.args if x.isfinite().any()), default=0.0)
            slack = SIGMOID * max(largest, 1.0) if b"Sigmoid" in model else 0.0
            outputs = session.run(None, dict(zip(names, (x.numpy() for x in case.args), strict=True)))
            if len(outputs) != len(case.results):
                return f"{len(outputs)} outputs, not {len(case.results)}"
            for actual, y, exact in itertools.zip_longest(outputs, case.results, case.exact[: len(outputs)]):
                if found := difference(actual, y, exact if y.is_floating_point() else None, slack):
                    return case.name + found
    except Exception as error:
        return f"ONNX Runtime: {brief(error)}"
    return ""


def brief(error: BaseException) -> str:
    """Return what an error says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:220]}"


def trial(call: Callable[..., Any], sample: Any, dtype: torch.dtype) -> dict[str, str]:
    """Return the outcome at one sample, what the plain export gives, what ours gives, and what verify says of it."""
    plain, ours = (Operator(call, sample, dtype, fused).eval() for fused in (False, True))
    args = tuple(ours.inputs)
    try:
        cases = list(values(plain, args))
    except Exception as error:
        return {"outcome": "none", "plain": f"eager: {brief(error)}"}
    results = cases[0].results
    if not results:
        return {"outcome": "none", "plain": "no output is a tensor"}
    if not any(not y.numel() or y.isfinite().any() for y in results if not y.is_quantized):
        return {"outcome": "none", "plain": "eager gives no number"}
    with torch.no_grad():
        torch.manual_seed(1)
        again = tensors(plain(*[x.clone() for x in args]))
    random = any(
        x.shape != y.shape or not torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(again, results, strict=True)
    )
    record, known = {"plain": "", "ours": "", "verdict": ""}, False
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(plain, args, dynamo=True, verbose=False, opset_version=18)
        assert program is not None
        record["plain"] = judged(program.model_proto.SerializeToString(), cases)
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        record["plain"] = f"refused: {brief(error)}"
    try:
        model = fusion_onnx.export(ours, args, dynamic=None, verify=False).model.SerializeToString()
        record["ours"] = judged(model, cases)
    except Exception as error:
        record["ours"] = f"refused: {brief(error)}"
    else:
        try:
            verdict = fusion_onnx.verify(ours, model, args)
            known = bool(verdict.known)
            record["verdict"] = "" if verdict.passed else " ".join(verdict.reasons[0].split())[:220]
        except Exception as error:
            record["verdict"] = brief(error)
    return {"outcome": _outcome(record, random, known), **{key: text for key, text in record.items() if text}}


def _outcome(record: dict[str, str], random: bool, known: bool) -> str:
    if record["ours"].startswith("refused") or record["verdict"]:
        return "refused" if record["plain"] or random else "alarm"
    if known and record["ours"].startswith(NOT_FINITE):
        return "known"
    if record["ours"].startswith(tuple(INFINITE)):
        return "infinite"
    return "passed" if record["ours"] or random else "right"


def tried(name: str, dtype: str, count: int) -> list[dict[str, str]]:
    """Return the outcomes of one operator in one dtype."""
    op, kind = operators()[name], getattr(torch, dtype)
    if kind not in op.supported_dtypes("cpu"):
        return []
    results = []
    for sample in samples(op, kind, count):
        try:
            results.append(trial(op.op, sample, kind))
        except LookupError as error:
            results.append({"outcome": "none", "plain": str(error)})
    return results


def prepare() -> None:
    """Read torch's translations once for all exports, and import here what each process would import."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = ONNXRegistry.from_torchlib
    kept: dict[Any, Any] = {}

    def registry(opset_version: int = 18) -> Any:
        if opset_version not in kept:
            kept[opset_version] = read(opset_version=opset_version)
        copy = ONNXRegistry()
        copy._opset_version = opset_version
        copy.functions = {target: list(metas) for target, metas in kept[opset_version].functions.items()}
        return copy

    ONNXRegistry.from_torchlib = staticmethod(registry)  # type: ignore[method-assign, assignment]
    tried("abs", "float32", 1)


def _child(name: str, dtype: str, count: int, pipe: Any) -> None:
    try:
        pipe.send(tried(name, dtype, count))
    except BaseException as error:
        pipe.send([{"outcome": "none", "plain": f"no trial: {brief(error)}"}])


def apart(name: str, dtype: str, count: int) -> list[dict[str, str]]:
    """Return the outcomes as a process of its own finds them, or that it took too long or fell."""
    context = multiprocessing.get_context("fork")  # what is imported here need not be imported there
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, dtype, count, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return ours.recv()  # type: ignore[no-any-return]
        return [{"outcome": "none", "plain": f"no result in {SECONDS} s"}]
    except EOFError:
        return [{"outcome": "none", "plain": "the process fell"}]
    finally:
        child.kill()
        child.join()


def table(results: Results) -> str:
    """Return the page."""
    lines = [
        "# Torch's operators behind a fusion",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("Written to")[0].strip(),
        "",
        f"torch {torch.__version__.split('+')[0]}, ONNX Runtime {onnxruntime.__version__}. An operator counts by the "
        "worst of its samples; `none`: eager execution itself refuses the sample, or it has no floating input or no "
        "output that is a tensor, or takes too long.",
        "",
        "| dtype | operators | " + " | ".join(OUTCOMES) + " | right by the plain export |",
        "|---|---:" + "|---:" * (len(OUTCOMES) + 1) + "|",
    ]
    for dtype in DTYPES:
        per = [found[dtype] for found in results.values() if found.get(dtype)]
        counts = Counter(worst(trials) for trials in per)
        plain = sum(all(not t.get("plain") for t in trials) for trials in per)
        cells = [str(counts[outcome]) for outcome in OUTCOMES]
        lines.append(f"| {dtype} | {len(per)} | {' | '.join(cells)} | {plain} |")
    for outcome in ("passed", "alarm", "infinite", "refused"):
        lines += ["", f"## {outcome}", "", "| operator | dtype | plain export | this library |", "|---|---|---|---|"]
        for name, found in sorted(results.items()):
            for dtype in DTYPES:
                bad = [t for t in found.get(dtype, []) if t["outcome"] == outcome]
                if bad:
                    ours = bad[0].get("verdict") or bad[0].get("ours", "right")
                    if outcome == "passed":
                        ours = bad[0].get("ours", "random")
                    cells = (bad[0].get("plain", "right"), ours)
                    lines.append(f"| `{name}` | {dtype} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def worst(trials: Sequence[dict[str, str]]) -> str:
    """Return the outcome that an operator counts by."""
    outcomes = {t["outcome"] for t in trials}
    return next((o for o in ("passed", "alarm", "refused", "infinite", "known", "right") if o in outcomes), "none")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")[:160]


def main() -> int:
    """Try what has not been tried; write both files after each operator. Return 1 where one was passed, or an alarm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="operators, all by default")
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each operator")
    parser.add_argument("--draw", type=int, default=0, help="only so many, drawn by the seed, each in one dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", default="", help="outcomes that are tried again, by commas; all: whatever it was")
    parser.add_argument("--output", type=Path, default=DOCS)
    parser.add_argument("--table", action="store_true", help="only write the page")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    os.nice(10)
    store = options.output / "operators.json"
    results: Results = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    again = set(options.again.split(","))
    pairs = [(name, dtype) for dtype in options.dtype or DTYPES for name in options.names or operators()]
    if options.draw:
        pairs = random.Random(options.seed).sample(pairs, options.draw)
    if not options.table:
        prepare()
    for name, dtype in () if options.table else pairs:
        old = results.get(name, {}).get(dtype)
        if old is not None and not again & {"all", worst(old)}:
            continue
        found = apart(name, dtype, options.samples)
        results.setdefault(name, {})[dtype] = found
        print(dtype, name, worst(found), *(t for t in found if t["outcome"] != "right"), flush=True)
        _write(store, json.dumps(dict(sorted(results.items())), indent=0) + "\n")
    _write(options.output / "operators.md", table(results))
    return int(any(worst(trials) in ("passed", "alarm") for found in results.values() for trials in found.values()))


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
