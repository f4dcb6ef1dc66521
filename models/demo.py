"""The demonstration behind `make demo`: train, export, verify and run the digits network with one fusion after another.

Usage: python -m models.demo [--strategy NAME ...] [--epochs N] [--output FOLDER]
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import fusion_onnx
from models import digits
from models._training import Samples

STRATEGIES = (
    "mean",
    "max",
    "median",
    "learned_weighted_sum",
    "l2_norm",
    "concatenation",
    "low_rank_concatenation",
    "kronecker_concatenation",
)
REPEATS = 20


@dataclass(frozen=True)
class Row:
    """What became of one network."""

    strategy: str
    eager: float
    exported: float
    difference: float
    passed: bool
    provider: str
    size: int
    microseconds: float


def measure(strategy: str, folder: Path, network: torch.nn.Module, test: Samples) -> Row:
    """Export a trained network, verify it, and run all held-out digits through ONNX Runtime."""
    path = folder / f"digits_{strategy}.onnx"
    result = fusion_onnx.export(network, digits.example_inputs(), path, overwrite=True)
    session = fusion_onnx.Session(path)
    eager = digits.predict(network, test.views)
    (exported,) = session.run(*test.views)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        session.run(*test.views)
        times.append(time.perf_counter() - start)
    return Row(
        strategy,
        digits.accuracy(eager, test.labels),
        digits.accuracy(exported, test.labels),
        float(np.abs(exported - eager).max()),
        result.verdict is not None and result.verdict.passed,
        session.providers[0].removesuffix("ExecutionProvider"),
        path.stat().st_size,
        1e6 * statistics.median(times) / len(test.labels),
    )


def table(rows: list[Row], samples: int) -> Table:
    """Return the rows as a table."""
    title = f"Handwritten digits, four views, {samples} held-out samples"
    result = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    result.add_column("strategy", no_wrap=True)
    for heading in ("accu-\nracy\neager", "accu-\nracy\nORT", "largest\ndiffer-\nence"):
        result.add_column(heading, justify="right", no_wrap=True)
    for heading in ("\n\nverdict", "\n\non"):
        result.add_column(heading)
    for heading in ("\nfile\nKiB", "\nµs a\nsample"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(
            row.strategy,
            f"{row.eager:.1%}",
            f"{row.exported:.1%}",
            f"{row.difference:.1e}",
            "[green]equal[/]" if row.passed else "[red]differs[/]",
            row.provider,
            f"{row.size / 1024:.1f}",
            f"{row.microseconds:.2f}",
        )
    return result


def _advance(progress: Progress, task: TaskID, epoch: int, _: int) -> None:
    progress.update(task, completed=epoch)


def main() -> int:
    """Train, export, verify, run; print the table. 0 where every verdict passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strategy", nargs="+", default=STRATEGIES, metavar="NAME", help="fusions to try")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training digits")
    parser.add_argument("--output", type=Path, default=Path(".demo"), metavar="FOLDER", help="where the models go")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    rows: list[Row] = []
    test = digits.load().test
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        overall = progress.add_task("networks", total=len(options.strategy))
        for strategy in options.strategy:
            task = progress.add_task(f"  training {strategy}", total=options.epochs)
            if not console.is_terminal:
                print(f"{strategy}: training, exporting, verifying", flush=True)
            network = digits.train(strategy, epochs=options.epochs, progress=partial(_advance, progress, task))
            progress.update(task, description=f"  exporting {strategy}")
            rows.append(measure(strategy, options.output, network, test))
            progress.remove_task(task)
            progress.advance(overall)
    console.print(table(rows, len(test.labels)))
    console.print(f"The models are in {options.output}/: open one in Netron, or run", highlight=False)
    last = f"{options.output}/digits_{rows[-1].strategy}.onnx"
    console.print(f"  .venv/bin/fusion-onnx inspect {last} --bodies", highlight=False, soft_wrap=True)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
