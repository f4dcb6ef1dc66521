"""Commands about strategies: list, matrix, bench."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

import fusion_onnx
from fusion_onnx.cli.app import FAILED, Html, Json, Known, command, documented, err, out, show, writable
from fusion_onnx.files import write_file

if TYPE_CHECKING:
    from fusion_onnx.testing.matrix import Matrix


@command("list", position=10)
def list_strategies(as_json: Json = False) -> None:
    """List the strategies: name, formula, n and l.

    Example: [bold]fusion-onnx list[/]
    """
    try:
        rows = [
            {"name": name, "formula": cls.formula, "n": cls.rule_n, "l": cls.rule_l, "tinybig": list(cls.tinybig)}
            for name, cls in ((name, fusion_onnx.get(name)) for name in fusion_onnx.names())
        ]
    except ImportError as error:  # the names are there without PyTorch, what they stand for is not
        empty = {"formula": "", "n": "", "l": "", "tinybig": []}
        rows = [{"name": name, **empty} for name in fusion_onnx.names()]
        err.print(f"[yellow]note:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    show(as_json, rows, _of_strategies(rows))


def _of_strategies(rows: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    table = Table(title="k inputs x_1 ... x_k, (..., n_i) each; D = n_1 + ... + n_k")
    table.add_column("strategy", no_wrap=True)
    for heading in ("output", "n", "l"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(escape(str(row[key])) for key in ("name", "formula", "n", "l")))
    yield table


@command(position=50)
def matrix(
    strategies: Annotated[list[str] | None, typer.Argument(help="Their names; all if left out.")] = None,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", "-r", help="One runtime; repeat it for more. All if left out.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="float16, float32 or float64; repeat it. float32 if left out.")
    ] = None,
    cases: Annotated[int, typer.Option(help="How many of each strategy's cases; 0 for all.", min=0)] = 1,
    known: Known = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the matrix as JSON.")] = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Run strategies in every runtime that is here, and compare each result with eager execution.

    Example: [bold]fusion-onnx matrix median low_rank_concatenation --html matrix.html[/]
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from fusion_onnx.testing.matrix import matrix as run_matrix

    writable(html)
    writable(output)
    differences = documented(known)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err) as progress:
        task = progress.add_task("starting", total=None)
        result = run_matrix(
            strategies or None,
            runtime or None,
            dtype or ("float32",),
            cases=cases or None,
            known=differences,
            report=lambda line: progress.update(task, description=escape(line)),
        )
    if output is not None:
        write_file(output, result.to_json().encode(), b"\n")
    if html is not None:
        from fusion_onnx.verification.report import write_html

        write_html(html, matrix=result)
    show(as_json, result.to_dict(), _of_matrix(result))
    if not result.passed:
        raise typer.Exit(FAILED)


def _of_matrix(result: "Matrix") -> Iterator[RenderableType]:
    yield from result.tables()
    yield from map(escape, result.notes())


@command(position=80)
def bench(
    strategies: Annotated[list[str] | None, typer.Argument(help="Their names; all if left out.")] = None,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", help="Such as 'latency, batch 1'; repeat it. All if left out.")
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option("--contender", help="Such as ours or compiled; repeat it. All if left out.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16, float32 or float64.")] = "float32",
    seconds: Annotated[float, typer.Option(help="For each row.", min=0.01)] = 3.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for JSON, Markdown and a plot.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what bench wrote there.")] = False,
    as_json: Json = False,
) -> None:
    """Measure strategies side by side with eager PyTorch, torch.compile, a plain export and OpenVINO.

    Outputs are checked before they are timed. Times are medians: interleaved, as a multiple of the floor, and alone. A
    floor is a copy of the bytes that are read and written, or the operations at the rate of a large matrix product.

    Example: [bold]fusion-onnx bench median sum --scenario 'latency, batch 1'[/]
    """
    import dataclasses

    from rich.markdown import Markdown

    from fusion_onnx import bench as benchmark

    if output is not None and output.is_dir():
        writable(output / "fusions.json", overwrite=overwrite)
    elif output is not None and os.path.lexists(output):
        raise FileExistsError(f"{output} exists and is no folder; name one for what bench writes.")
    else:
        writable(output)
    for name in strategies or ():
        fusion_onnx.get(name)
    names = strategies or (), scenario or (), contender or ()
    rows = benchmark.run(*names, seconds, dtype=dtype, report=lambda line: err.print(escape(line)))
    text = benchmark.table(rows)
    if as_json or out.is_terminal:
        data = {"machine": benchmark.machine(), "rows": [dataclasses.asdict(row) for row in rows]}
        show(as_json, data, [Markdown(text)])
    else:
        sys.stdout.write(text + "\n")
    if output is not None:  # what was measured is shown, should it fail
        benchmark.write(output, rows, overwrite=overwrite)
