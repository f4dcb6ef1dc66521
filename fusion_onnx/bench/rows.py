"""Measure every strategy against what a user would otherwise run.

All contenders of a row are built first, checked against the float64 result, warmed, and then called one after the
other, round by round, in one process; then each is repeated alone. The floor of a row is a copy of the bytes that the
fusion has to read and write, or its operations at the rate of a large matrix product, whichever takes longer; both are
timed in the same rounds. Times are medians.
"""

import functools
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import fusion_onnx
from fusion_exporters.tuning import median_times
from fusion_onnx import Fusion
from fusion_onnx.bench.contenders import CONTENDERS, Absent, export_bytes, plain_export_bytes
from fusion_onnx.file_format import facts_in
from fusion_onnx.runtime._probe import first_line
from fusion_onnx.testing.matrix import float_dtype


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
    """Seconds, medians: interleaved with the others, and isolated; failed: why a contender has none.

    floor: the least time, the longer of `copy`, that of the bytes moved, and the operations at the measured `rate`.
    files: of each kind of file, `export` and `load` in seconds, its `bytes`, and the `peak` of memory (bytes) that
    loading it and running it once in ONNX Runtime adds to a process.
    """

    strategy: str
    scenario: str
    bytes_moved: int
    operations: int
    copy: float
    rate: float
    floor: float
    interleaved: dict[str, float] = field(default_factory=dict)
    isolated: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, float]] = field(default_factory=dict)


def fusions(scenario: Scenario, names: list[str]) -> Iterator[tuple[str, Fusion]]:
    """Yield the strategies that a scenario has, made for its sizes."""
    for name in names:
        cls = fusion_onnx.get(name)
        projects = "n" in cls.options()
        if scenario.structured and not projects:
            continue
        if projects and not scenario.structured and scenario.rows > 16:
            continue  # the structured scenario is theirs
        options = dict(cls.bench_options)
        if projects:
            options["n"] = scenario.k * scenario.width if scenario.structured else scenario.width
        dims = [scenario.width] * scenario.k
        yield name, fusion_onnx.create(name, dims=dims, **options)
        if cls.tinybig_defaults:  # where tinyBIG computes something else under the same name
            options_text = ", ".join(map(str, cls.tinybig_defaults.values()))
            yield f"{name}, {options_text}", fusion_onnx.create(name, dims=dims, **{**options, **cls.tinybig_defaults})


def copier(count: int) -> Callable[[], Any]:
    """Return a copy that reads and writes `count` bytes in all, on all threads."""
    source = torch.zeros(max(count // 8, 1))
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


_SIDE = 512


def multiplier() -> Callable[[], Any]:
    """Return a product of two square matrices, 2 · 512³ operations, on all threads."""
    a, b, y = (torch.ones(_SIDE, _SIDE) for _ in range(3))
    return lambda: torch.mm(a, b, out=y)


def operations_of(fusion: Fusion, xs: list[torch.Tensor], w: torch.Tensor | None) -> int:
    """Return the multiplications and additions of the form that a fusion is exported in."""
    proto = onnx.load_model_from_string(export_bytes(fusion, xs, w))
    (facts,) = facts_in({p.key: p.value for p in proto.metadata_props}).values()
    return int(facts["operations"])


def float64_result(fusion: Fusion, xs: list[torch.Tensor], w: torch.Tensor | None) -> Any:
    """Return the result that contenders are held to: the strategy's reference, or eager's where it gives none."""
    if fusion.has_reference():
        return fusion.reference([x.numpy() for x in xs], None if w is None else w.numpy())
    with torch.no_grad():
        return fusion(xs, w).numpy()


def row(
    name: str,
    fusion: Fusion,
    scenario: Scenario,
    contenders: list[str],
    seconds: float,
    *,
    dtype: torch.dtype = torch.float32,
    files: bool = False,
) -> Row:
    """Measure one strategy in one scenario."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(scenario.rows, scenario.width, generator=generator).to(dtype) for _ in range(scenario.k)]
    length = fusion.calculate_l()
    w = (torch.randn(length, generator=generator) / length**0.5).to(dtype) if length else None
    exact = float64_result(fusion, [x.double() for x in xs], None if w is None else w.double())
    operands = [*xs, *(b.to(dtype) for b in fusion.buffers()), *([] if w is None else [w])]
    bytes_moved = sum(t.nbytes for t in operands) + exact.size * xs[0].itemsize
    calls: dict[str, Callable[[], Any]] = {"copy": copier(bytes_moved), "matrix": multiplier()}
    tolerance = max(1e-4, 8 * torch.finfo(dtype).eps)
    failed = {}
    for contender in contenders:
        try:
            call = CONTENDERS[contender](fusion, xs, w)
            deviation = np.abs(_on_host(call()) - exact).max() / max(np.abs(exact).max(), 1e-30)
            if not deviation < tolerance:
                raise ArithmeticError(f"it is off by {deviation:.1e} of the largest entry")
            calls[contender] = call
        except Exception as error:
            failed[contender] = f"{type(error).__name__}: {first_line(error)[:300]}"
    interleaved = median_times(calls, seconds)
    operations, rate = operations_of(fusion, xs, w), 2 * _SIDE**3 / interleaved.pop("matrix")
    copy = interleaved.pop("copy")
    del calls["matrix"]
    isolated = {
        contender: median_times({contender: call}, seconds / len(calls))[contender] for contender, call in calls.items()
    }
    facts: dict[str, dict[str, float]] = {}
    for kind, export in {"ours": export_bytes, "plain_export": plain_export_bytes}.items() if files else ():
        try:
            facts[kind] = of_file(functools.partial(export, fusion, xs, w), [x.numpy() for x in xs])
        except Absent:
            facts[kind] = {}
    floor = max(copy, operations / rate)
    return Row(name, scenario.name, bytes_moved, operations, copy, rate, floor, interleaved, isolated, failed, facts)


def _on_host(y: Any) -> Any:
    return y.detach().cpu().double().numpy() if isinstance(y, torch.Tensor) else np.asarray(y, np.float64)


# not getrusage: a child begins with its parent's peak there
_PEAK = """
import sys
import numpy as np, onnxruntime
def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))
inputs = list(np.load(sys.argv[2]).values())
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before = resident("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs)})
print(resident("VmHWM") - before)
"""


def of_file(export: Callable[[], bytes], arrays: list[Any]) -> dict[str, float]:
    """Measure a file: how long its export and loading take, its size, and the memory it needs in a fresh process."""
    import onnxruntime

    start = time.perf_counter()
    model = export()
    end = time.perf_counter()
    loads = []
    for _ in range(3):
        begin = time.perf_counter()
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        loads.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as folder:
        file, inputs = Path(folder, "model.onnx"), Path(folder, "inputs.npz")
        file.write_bytes(model)
        np.savez(inputs, *arrays)
        command = [sys.executable, "-c", _PEAK, str(file), str(inputs)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    peak = {"peak": 1024.0 * int(process.stdout.split()[-1])} if process.returncode == 0 else {}  # Linux alone tells
    return {"export": end - start, "load": statistics.median(loads), "bytes": float(len(model)), **peak}


def run(
    strategies: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    contenders: Sequence[str] = (),
    seconds: float = 1.0,
    *,
    dtype: str = "float32",
    files: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure strategies in scenarios against contenders, all of each where none is named.

    Raises ValueError for a name that is none.
    """
    torch_dtype = float_dtype(dtype)
    for kind, requests, names in (
        ("scenario", scenarios, [s.name for s in SCENARIOS]),
        ("contender", contenders, list(CONTENDERS)),
    ):
        for name in requests:
            if name not in names:
                raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(map(repr, names))}.")
    rows = []
    for scenario in SCENARIOS:
        if scenarios and scenario.name not in scenarios:
            continue
        for name, fusion in fusions(scenario, list(strategies) or list(fusion_onnx.names())):
            report(f"{scenario.name}: {name}")
            with_files = files and (scenario.structured or scenario.rows > 16)
            competitors = list(contenders) or list(CONTENDERS)
            rows.append(row(name, fusion, scenario, competitors, seconds, dtype=torch_dtype, files=with_files))
    if not rows:
        raise ValueError(f"{', '.join(strategies)} is in no such scenario: the structured one has projections alone.")
    return rows


def short(seconds: float, digits: int = 4) -> str:
    """Return a time in words: µs below a millisecond, ms from there on."""
    return f"{seconds * 1e6:,.{digits}g} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.{digits}g} ms"


def machine() -> dict[str, Any]:
    """Say what it ran on."""
    import onnxruntime

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    return {
        "cpu": model,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "fusion-onnx": fusion_onnx.__version__,
    }
