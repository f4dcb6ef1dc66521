"""Measure whole networks, in a loop of calls and from a cold start: `python -m benchmarks.networks` (3 minutes).

Each network is run by eager PyTorch, by torch.compile, as a plain `torch.onnx.export` with the usual formula in place
of each fusion, and as our file of the same opset: by ONNX Runtime itself, by `Session.run`, and bound. ONNX Runtime and
`Session` have their default options, so their threads spin between calls, as they do where users call them. Each
contender therefore runs alone in its turn, a loop of calls, and the next one waits until all threads sleep. The order
of the turns is drawn anew for each round. A ratio is the median of the rounds' ratios. Each output is checked against
float64 before it is timed.

The cold start is the time of a whole process that imports, loads a file, and runs it once, beside one that does so with
ONNX Runtime alone, in turn.

Written to benchmarks/results: networks.json, networks.md, networks.png. `--quick` measures two networks at batch 1,
without torch.compile, and no cold start. A network more is one function more in NETWORKS.
"""

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

import fusion_onnx
from fusion_onnx import FusionLayer
from fusion_onnx.bench.contenders import Formula, plain_model
from fusion_onnx.bench.plot import Panel, bars
from fusion_onnx.bench.rows import machine, short
from fusion_onnx.files import write_file
from models import digits

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 16, 64, 256, 4096)
ROUNDS, TURN = 11, 0.02
CONTENDERS = {
    "run": "fusion-onnx, Session.run",
    "bound": "fusion-onnx, bound call",
    "own_run": "its file in plain ONNX Runtime",
    "plain_export": "plain export in ONNX Runtime",
    "compiled": "torch.compile",
    "eager": "eager PyTorch",
}
Call = Callable[[], Sequence[Any]]
Network = tuple[str, nn.Module, Callable[[int], tuple[Tensor, ...]]]


# --- networks ---------------------------------------------------------------------------------------------------------


def digits_median() -> Network:
    """Four views of a handwritten digit, merged entry by entry."""
    return "digits, median", digits.build("median"), _views


def digits_weighted() -> Network:
    """The same views, merged with trained weights."""
    network = digits.build("learned_weighted_sum")
    with torch.no_grad():
        network.fusion.w.copy_(torch.tensor([[0.4, 0.3, -0.1, 0.2]]))
    return "digits, weighted sum", network, _views


def digits_low_rank() -> Network:
    """The same views, merged by a structured matrix."""
    return "digits, low rank", digits.build("low_rank_concatenation"), _views


def two_towers() -> Network:
    """A text of 16 tokens and an image of 16 patches, each through a block of attention, merged by a product."""
    return "two towers, attention", TwoTowers(), TwoTowers.example


def pyramid() -> Network:
    """Feature maps of three sizes, passed down and up a pyramid whose nodes are weighted sums (as in BiFPN)."""
    return "pyramid, weighted sums", Pyramid(), Pyramid.example


NETWORKS = (digits_median, digits_weighted, digits_low_rank, two_towers, pyramid)


def _views(batch: int) -> tuple[Tensor, ...]:
    return tuple(torch.rand(batch, d) for d in digits.DIMS)


class Block(nn.Module):
    """A block of a transformer on (N, tokens, width): attention, then two linear layers; the mean of the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.joint(self.before(x)).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.narrow(functional.gelu(self.wide(self.after(x))))
        return x.mean(1)


class TwoTowers(nn.Module):
    """Token numbers (N, 16) and patches (N, 16, 48) → logits (N, 10)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(1000, width), nn.Linear(48, width)
        self.text, self.image = Block(width, 4), Block(width, 4)
        self.fusion = FusionLayer(fusion_onnx.create("prod", dims=[width, width]))
        self.classifier = nn.Linear(width, 10)

    @staticmethod
    def example(batch: int) -> tuple[Tensor, ...]:
        """Return inputs."""
        return torch.randint(0, 1000, (batch, 16)), torch.randn(batch, 16, 48)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Compute it."""
        merged = self.fusion(self.text(self.words(tokens)), self.image(self.patches(patches)))
        logits: Tensor = self.classifier(merged)
        return logits


class Pyramid(nn.Module):
    """Feature maps (N, 16, 16, 16), (N, 16, 8, 8), (N, 16, 4, 4) → as many of the same shapes."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()

        def node(size: int, *weights: float) -> FusionLayer:
            return FusionLayer(fusion_onnx.create("weighted_sum", dims=[size] * len(weights), weights=list(weights)))

        def convolution() -> nn.Module:
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            return nn.Sequential(nn.SiLU(), depthwise, nn.Conv2d(channels, channels, 1))

        self.down_4, self.down_3 = node(8, 0.7, 0.3), node(16, 0.6, 0.4)
        self.up_4, self.up_5 = node(8, 0.5, 0.3, 0.2), node(4, 0.8, 0.2)
        self.conv_4, self.conv_3, self.conv_up_4, self.conv_up_5 = (convolution() for _ in range(4))

    @staticmethod
    def example(batch: int) -> tuple[Tensor, ...]:
        """Return inputs."""
        return tuple(torch.randn(batch, 16, size, size) for size in (16, 8, 4))

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute it."""
        middle = self.conv_4(self.down_4(p4, functional.interpolate(p5, scale_factor=2.0)))
        out_3 = self.conv_3(self.down_3(p3, functional.interpolate(middle, scale_factor=2.0)))
        out_4 = self.conv_up_4(self.up_4(p4, middle, functional.max_pool2d(out_3, 2)))
        return out_3, out_4, self.conv_up_5(self.up_5(p5, functional.max_pool2d(out_4, 2)))


# --- the usual formula ------------------------------------------------------------------------------------------------


def plain(network: nn.Module) -> nn.Module:
    """Return a copy of a network with the usual formula, which is a strategy's own reference, in place of each fusion.

    Raises:
        Absent: a strategy gives no reference.
    """
    network = copy.deepcopy(network)
    for path, layer in list(network.named_modules()):
        if isinstance(layer, FusionLayer):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, Formula(layer.fusion, layer.w, torch.float32))
    return network.eval()


# --- contenders -------------------------------------------------------------------------------------------------------


def calls_of(network: nn.Module, xs: tuple[Tensor, ...], files: dict[str, Any], *, compiled: bool) -> dict[str, Call]:
    """Return each contender's call on the inputs."""
    arrays = [x.numpy() for x in xs]

    def in_torch(module: Callable[..., Any]) -> Call:
        def call() -> Sequence[Any]:
            with torch.no_grad():
                result = module(*xs)
            return result if isinstance(result, tuple) else (result,)

        return call

    def own(session: Any) -> Call:
        feeds = {info.name: array for info, array in zip(session.get_inputs(), arrays, strict=True)}
        return lambda: session.run(None, feeds)  # type: ignore[no-any-return]

    calls = {"eager": in_torch(network)}
    if compiled:
        torch.compiler.reset()
        calls["compiled"] = in_torch(torch.compile(network, fullgraph=True, dynamic=False))
    session = files["session"]
    return {
        **calls,
        "plain_export": own(files["plain_export"]),
        "own_run": own(files["own_run"]),
        "run": lambda: session.run(*arrays),
        "bound": session.bind(*arrays),
    }


def files_of(network: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the sessions of the two files, each with default options; both files are of the plain export's opset."""
    usual = plain_model(plain(network), example)
    (opset,) = [entry.version for entry in onnx.load_model_from_string(usual).opset_import if not entry.domain]
    model = bytes(fusion_onnx.export(network, example, opset=opset, verify=False).model.SerializeToString())
    cpu = ["CPUExecutionProvider"]
    return {
        "plain_export": onnxruntime.InferenceSession(usual, providers=cpu),
        "own_run": onnxruntime.InferenceSession(model, providers=cpu),
        "session": fusion_onnx.Session(model, "cpu"),
    }


# --- a loop of calls --------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One network at one batch size: each contender's median time in seconds, and its time beside `Session.run`'s.

    beside: the median of the rounds' ratios, above 1 where `Session.run` is faster.
    """

    network: str
    batch: int
    seconds: dict[str, float]
    beside: dict[str, float]


def settle() -> None:
    """Wait until no thread of this process spins any more."""
    for _ in range(40):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def loops(calls: dict[str, Call], rounds: int, turn: float) -> dict[str, list[float]]:
    """Return the seconds of a call in each round, each contender in turns of its own."""
    order, orders = list(calls.items()), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        orders.shuffle(order)
        for name, call in order:
            settle()
            call()  # wakes the threads
            start, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < turn:
                call()
                count += 1
            times[name].append(spent / count)
    return times


def check(calls: dict[str, Call], exact: Sequence[Tensor]) -> None:
    """Hold each contender's outputs to float64; raises ArithmeticError for one that computes something else."""
    for name, call in calls.items():
        for result, right in zip(call(), exact, strict=True):
            off = np.abs(np.asarray(result, np.float64) - right.numpy()).max() / np.abs(right.numpy()).max()
            if not off < 1e-4:
                raise ArithmeticError(f"{name} is off by {off:.1e} of the largest entry")


def measure(build: Callable[[], Network], batches: Sequence[int], rounds: int, *, compiled: bool) -> list[Row]:
    """Measure one network."""
    torch.manual_seed(0)
    name, network, example = build()
    network.eval()
    files, rows = files_of(network, example(4)), []
    for batch in batches:
        print(f"{name}, batch {batch}", file=sys.stderr, flush=True)
        xs = example(batch)
        with torch.no_grad():
            doubled = copy.deepcopy(network).double()
            exact = doubled(*(x.double() if x.is_floating_point() else x for x in xs))
        calls = calls_of(network, xs, files, compiled=compiled)
        check(calls, exact if isinstance(exact, tuple) else (exact,))
        times = loops(calls, rounds, TURN)
        medians = {contender: statistics.median(samples) for contender, samples in times.items()}
        beside = {
            contender: statistics.median(a / b for a, b in zip(samples, times["run"], strict=True))
            for contender, samples in times.items()
        }
        rows.append(Row(name, batch, medians, beside))
    return rows


# --- a cold start -----------------------------------------------------------------------------------------------------

_FEEDS = "[np.zeros([5, *i.shape[1:]], np.float32) for i in {}]"
_COLD = {
    "onnxruntime": f"""
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
inputs = session.get_inputs()
session.run(None, dict(zip([i.name for i in inputs], {_FEEDS.format("inputs")})))
""",
    "fusion_onnx": f"""
import sys
import numpy as np
import fusion_onnx
session = fusion_onnx.Session(sys.argv[1])
session.run(*{_FEEDS.format("session.inputs")})
""",
    "fusion_onnx.runtime": f"""
import sys
import numpy as np
from fusion_onnx.runtime import Session
session = Session(sys.argv[1])
session.run(*{_FEEDS.format("session.inputs")})
""",
}


def cold_starts(rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of whole processes, and the median of each round's ratio to ONNX Runtime alone."""
    times: dict[str, list[float]] = {name: [] for name in _COLD}
    order, orders = list(_COLD), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        # bytecode, as an installed package has it, of all of them; a checkout may have none
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        path = Path(folder, "digits.onnx")
        fusion_onnx.export(digits.build("median"), _views(5), path, verify=False)
        for turn in range(rounds + 1):
            orders.shuffle(order)
            for name in order:
                start = time.perf_counter()
                subprocess.run([sys.executable, "-c", _COLD[name], str(path)], check=True, env=environment)
                if turn:  # the first compiles, and reads the files from the disk
                    times[name].append(time.perf_counter() - start)
    alone = times["onnxruntime"]
    return {
        name: {
            "seconds": statistics.median(samples),
            "beside": statistics.median(a / b for a, b in zip(samples, alone, strict=True)),
        }
        for name, samples in times.items()
    }


# --- what is written --------------------------------------------------------------------------------------------------


def _geometric(rows: list[Row], contender: str, beside: str = "run") -> tuple[float, float]:
    """Return a contender's time beside another's: the geometric mean over the rows, and the largest."""
    ratios = [row.beside[contender] / row.beside[beside] for row in rows if contender in row.beside]
    return statistics.geometric_mean(ratios), max(ratios)


def cores_in_use(seconds: float = 2.0) -> float:
    """Return how many cores others use just now; the load of the last minute where Linux does not tell."""

    def ticks() -> tuple[int, int]:
        times = [int(count) for count in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
        return sum(times), times[3] + times[4]  # idle, and idle with something to read or write under way

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total, idle = (after - before for after, before in zip(ticks(), (total, idle), strict=True))
        return (os.cpu_count() or 1) * (1 - idle / total)
    except (OSError, ValueError):
        return os.getloadavg()[0]


def busy(load: float) -> str:
    """Return a warning where other processes had the cores when the run began, "" where they had not."""
    if load < 0.25:
        return ""
    return f"The machine was busy ({load:.1f} cores): medians suffer, PyTorch's by far the most. Not to be quoted."


def table(rows: list[Row], cold: dict[str, dict[str, float]], load: float) -> str:
    """Return all as Markdown."""
    contenders = [c for c in CONTENDERS if any(c in row.seconds for row in rows)]
    lines = ["A call in a loop: the median time, and in brackets how many times `Session.run`'s.", ""]
    lines += [busy(load), ""] if busy(load) else []
    lines += [f"| network | batch | {' | '.join(CONTENDERS[c] for c in contenders)} |"]
    lines += ["|---|---:" + "|---:" * len(contenders) + "|"]
    for row in rows:
        cells = [f"{short(row.seconds[c], 3)} ({row.beside[c]:.2f} ×)" for c in contenders]
        lines.append(f"| {row.network} | {row.batch} | {' | '.join(cells)} |")
    lines += ["", "| over all rows | geometric mean | in the worst row |", "|---|---:|---:|"]
    for name, peer in (("run", "own_run"), ("run", "plain_export"), ("bound", "own_run"), ("run", "eager")):
        mean, worst = _geometric(rows, name, peer)
        lines.append(f"| {CONTENDERS[name]}, beside {CONTENDERS[peer]} | {mean:.2f} × | {worst:.2f} × |")
    if cold:
        lines += ["", "| import, load, run once: a process | ms | beside ONNX Runtime alone |", "|---|---:|---:|"]
        lines += [f"| {name} | {f['seconds'] * 1e3:.0f} | {f['beside']:.2f} × |" for name, f in cold.items()]
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], load: float, path: Path) -> None:
    """Draw how much longer each contender takes than `Session.run`, a panel for each network."""
    panels = []
    for network in dict.fromkeys(row.network for row in rows):
        here = [row for row in rows if row.network == network]
        ratios = {c: [row.beside[c] for row in here if c in row.beside] for c in CONTENDERS}
        fastest, slowest = (pick(row.seconds["run"] for row in here) for pick in (min, max))
        detail = f"batches of {here[0].batch} to {here[-1].batch}" if len(here) > 1 else f"batch {here[0].batch}"
        own = f"{short(fastest, 3)} to {short(slowest, 3)}" if len(here) > 1 else short(fastest, 3)
        title, _, more = network.partition(", ")
        panels.append(Panel(title[0].upper() + title[1:], f"{more}\n{detail}", ratios, own))
    facts = machine()
    bars(
        panels,
        CONTENDERS,
        ("run", "bound"),
        "How many times as long as fusion-onnx others take to run the same network",
        busy(load)
        or f"Calls in a loop; shorter is faster. Bars: geometric mean over batch sizes, cut beyond 6 ×. Dots: each. "
        f"{facts['threads']} cores, {facts['cpu']}.",
        path,
        longest=6,
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder")
    parser.add_argument("--quick", action="store_true", help="two networks at batch 1, for a smoke test")
    quick = (options := parser.parse_args()).quick
    load = cores_in_use()
    rows = [
        row
        for build in (NETWORKS[1:3] if quick else NETWORKS)
        for row in measure(build, BATCHES[:1] if quick else BATCHES, 1 if quick else ROUNDS, compiled=not quick)
    ]
    cold = {} if quick else cold_starts(15)
    options.output.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine(),
        "cores in use before": load,
        "rows": [asdict(row) for row in rows],
        "cold start": cold,
    }
    write_file(options.output / "networks.json", json.dumps(data, indent=1).encode(), b"\n")
    write_file(options.output / "networks.md", (text := table(rows, cold, load)).encode())
    draw(rows, load, options.output / "networks.png")
    print(text)


if __name__ == "__main__":
    main()
