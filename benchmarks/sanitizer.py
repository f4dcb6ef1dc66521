"""Memory errors in the fused kernels and in bound calls, looked for with the compiler's sanitizers.

`python -m benchmarks.sanitizer` compiles the kernels with -fsanitize=address,undefined, runs every strategy through
them in a process of its own, and writes sanitizer.json into benchmarks/results. Inputs and outputs are blocks of memory
of their own, as long as they need to be, so that a byte too far is somebody else's. It takes gcc and its libasan.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fusion_onnx
from fusion_onnx.bench.rows import machine
from fusion_onnx.runtime import Session, _ort, fused
from fusion_onnx.runtime.fused import kernels
from fusion_onnx.runtime.fused.build import compile_library
from tests import mischief

RESULTS = Path(__file__).parent / "results"
CHECKS = "-O1 -g1 -fsanitize=address,undefined -fno-omit-frame-pointer"
DTYPES = (torch.float16, torch.float32, torch.float64)
ROWS = (0, 1, 3, 33, 67)
LEADS = ((), (2,), (2, 3), (2, 1, 3))
"""The axes before the last one, by rank."""
OFFSETS = (0, 1, 5)
"""How many items into a block of memory an array begins."""
LARGE = (2311, 1021)
"""Rows and columns of float32 of which three inputs and an output take more than 32 MiB."""


def main() -> None:
    """Run it, print what was run and found, and write it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--sample", type=int, help="how many models to draw; all if left out")
    options.add_argument("--library", type=Path, help=argparse.SUPPRESS)  # of the child
    arguments = options.parse_args()
    if arguments.library:
        print(json.dumps(campaign(arguments.library, arguments.seed, arguments.sample)))
        return
    table = {"machine": machine(), **check(arguments.seed, arguments.sample)}
    print(json.dumps(table, indent=1))
    if arguments.sample is None:
        (RESULTS / "sanitizer.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(table["findings"] or table["wrong"]))


def library() -> str:
    """Return the path of gcc's library for -fsanitize=address; "" where there is none."""
    if not shutil.which("gcc"):
        return ""
    done = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()  # its name alone where gcc does not have it
    return path if os.path.isabs(path) and os.path.exists(path) else ""


def check(seed: int, sample: int | None = None) -> dict[str, Any]:
    """Compile, run the campaign in a child, and return what was run and what the sanitizers said.

    Raises:
        RuntimeError: it does not compile, or the child died of something else than a finding.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "entrywise.so")
        reason = compile_library(target, CHECKS.split())
        if reason:
            raise RuntimeError(reason)
        env = {
            **os.environ,
            "LD_PRELOAD": f"{library()} libstdc++.so.6",  # the second for those who throw before it is loaded
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        }
        child = [sys.executable, "-m", "benchmarks.sanitizer", "--seed", str(seed), "--library", str(target)]
        child += [] if sample is None else ["--sample", str(sample)]
        done = subprocess.run(child, capture_output=True, text=True, env=env, check=False)
    *_, last = done.stdout.splitlines() or ["nothing"]
    findings = _findings(done.stderr)
    if done.returncode and not findings:
        raise RuntimeError(f"the child ended with {done.returncode} in {last}: {done.stderr[-2000:]}")
    if done.returncode:  # the address sanitizer ends it at its first finding
        findings.append(f"in {last}")
    version = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    counts = json.loads(done.stdout.splitlines()[-1]) if not done.returncode else {}
    return {"compiler": f"gcc {version}", "flags": CHECKS, "seed": seed, **counts, "findings": findings}


def _findings(text: str) -> list[str]:
    """Return what the sanitizers said, and where in the kernels, without the folders of this machine."""
    kinds = re.findall(r"SUMMARY: AddressSanitizer: ([\w-]+)|([\w.]+:\d+:\d+: runtime error: .*)", text)
    places = re.findall(r"#\d+ \S+ in (\w+ )\S*?((?:operator|loops)\.c:\d+)", text)
    return [*dict.fromkeys("".join(kind) for kind in kinds), *("".join(place) for place in places[:1])]


def campaign(target: Path, seed: int, sample: int | None) -> dict[str, Any]:
    """Run every strategy with the kernels of this library, and all mischief; return how much, and what differs."""
    kernels.PATH = str(target)
    _turn_the_arena_off()
    draw = np.random.default_rng(seed)
    subjects = list(_subjects())
    if sample is not None:
        subjects = [subjects[i] for i in draw.permutation(len(subjects))[:sample]]
    count: Counter[str] = Counter(models=0, kernels=0, runs=0, bound=0, large=0, mischief=0)
    wrong = []
    for name, case, dtype, lead in subjects:
        print(f"{name} {case} {dtype} {lead}", flush=True)
        model = _model(case.create(fusion_onnx.get(name)), dtype, lead)
        session, plain = Session(model, "cpu", threads=1), Session(model, "cpu", threads=1, fuse=False)
        count += Counter(models=1, kernels=len(session.fused))
        for rows in ROWS if lead else (1,):
            for offset in OFFSETS:
                for level in (0, 1) if session.fused else (0,):
                    if session.fused:
                        fused.instructions(level)
                    _once(session, plain, rows, offset, draw, count, wrong, name)
    print("blocks of rows", flush=True)
    for name in ("sum", "median", "learned_weighted_sum")[: None if sample is None else 1]:
        model = _model(fusion_onnx.create(name, dims=[LARGE[1]] * 3), torch.float32, (2,))
        for fuse in (None, False):  # without kernels it is computed in blocks of rows
            session = Session(model, "cpu", threads=2, fuse=fuse)
            plain = Session(model, "cpu", threads=2, fuse=False)
            _once(session, plain, LARGE[0], OFFSETS[-1], draw, count, wrong, name)
            count["large"] += 1
    print("mischief", flush=True)
    session = Session(_model(fusion_onnx.create("sum", dims=[mischief.SHAPE[1]] * 2), torch.float32, (2,)), "cpu")
    for act, right, got in mischief.outcomes(session):
        count["mischief"] += 1
        wrong += [f"{act}: {got}; right is {right}"] if got != right else []
    return {**count, "wrong": wrong}


def _subjects() -> Iterator[tuple[str, Any, torch.dtype, tuple[int, ...]]]:
    for name in fusion_onnx.names():
        for i, case in enumerate(fusion_onnx.get(name).cases):
            for dtype in DTYPES:
                for lead in LEADS if i == 0 else LEADS[1:2]:
                    yield name, case, dtype, lead


def _model(fusion: Any, dtype: torch.dtype, lead: tuple[int, ...]) -> Any:
    xs = [torch.randn(*lead, width).to(dtype) for width in fusion.dims]
    length = fusion.calculate_l()
    args = (xs, torch.randn(length).to(dtype)) if length else (xs,)
    return fusion_onnx.export(fusion, args, verify=False).model


def _once(
    session: Session, plain: Session, rows: int, offset: int, draw: Any, count: Any, wrong: list[str], name: str
) -> None:
    """Run and bind, outputs given and not; all have to agree with ONNX Runtime's own operators."""
    xs = [_block(_shape(info, rows), info.dtype, offset, draw) for info in session.inputs]
    [right] = plain.run(*xs)
    y = _block(right.shape, session.outputs[0].dtype, offset)
    results = [session.run(*xs)[0], session.bind(*xs)()[0], session.bind(*xs, outputs=y)()[0]]
    results.append(session.bind(*map(torch.from_numpy, xs), outputs=torch.from_numpy(y))()[0].numpy())
    count.update(runs=1, bound=3)
    close = {"rtol": 0, "atol": 0} if session.fused else {"rtol": 1e-2, "atol": 1e-2}
    if not all(np.allclose(result, right, equal_nan=True, **close) for result in results):
        wrong.append(f"{name}, {rows} rows, {right.dtype}")


def _shape(info: Any, rows: int) -> list[int]:
    return [
        rows if axis == 0 and isinstance(n, str) else 2 if isinstance(n, str) else n
        for axis, n in enumerate(info.shape)
    ]


def _block(shape: Any, dtype: str, offset: int, draw: Any = None) -> Any:
    """Return an array that ends where its block of memory does."""
    size, item = int(np.prod(shape)), np.dtype(dtype).itemsize
    array = np.empty((offset + size) * item, np.uint8)[offset * item :].view(dtype).reshape(shape)
    array[...] = 0 if draw is None else draw.standard_normal(shape)
    return array


def _turn_the_arena_off() -> None:
    """Let each tensor of ONNX Runtime be a block of its own, too."""
    ort = _ort.load()
    made = ort.SessionOptions

    def options() -> Any:
        result = made()
        result.enable_cpu_mem_arena = False
        return result

    ort.SessionOptions = options


if __name__ == "__main__":
    main()
