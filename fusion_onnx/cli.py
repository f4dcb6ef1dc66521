"""The command line, `fusion-onnx`: list, export, run, verify, matrix, inspect, tune, bench, doctor.

Exit codes: 0 fine, 1 a verdict failed, 2 the request was wrong or cannot be met.
"""

import functools
import json
import os
import platform
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fusion_onnx
from fusion_onnx import interruption
from fusion_onnx.extras import explained
from fusion_onnx.files import vacant, write_file, written

if TYPE_CHECKING:
    from fusion_onnx.verification import Verdict
    from fusion_onnx.verification.known import Difference

app = typer.Typer(
    name="fusion-onnx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fusions of tensors, from PyTorch to ONNX and ONNX Runtime.\n\n"
    "Example: [bold]fusion-onnx export net.py:build -o net.onnx[/]",
)
out = Console()
err = Console(stderr=True)
_TRACE = "FUSION_ONNX_TRACE"  # set it to see the whole trace of an error

FAILED, USAGE = 1, 2

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Provider = Annotated[
    list[str] | None,
    typer.Option("--provider", "-p", help="auto, cpu, cuda, or a provider's full name; repeat it for an order."),
]
TargetName = Annotated[str, typer.Argument(help="path/to/file.py:callable or package.module:callable")]
Known = Annotated[
    Path | None, typer.Option("--known", help="A folder of documented differences, such as docs/differences.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page.", show_default=False)]
ModelFile = Annotated[Path, typer.Argument(help="an ONNX file", show_default=False)]


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors a user can cause into one line and exit code 2; those of the program itself keep their trace."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Exception as error:
            if interruption.happened():  # what an import that is cut off leaves behind
                raise typer.Exit(interruption.CODE) from None
            own = isinstance(error, (ValueError, OSError, ImportError, fusion_onnx.SessionError))
            if os.environ.get(_TRACE) or not own:
                raise
            err.print(f"[bold red]error:[/] {escape(_said(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(USAGE) from None

    return wrapped


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, ModuleNotFoundError):
        return str(explained(error, "this command"))
    return str(error)


def _print_json(value: Any) -> None:
    from fusion_onnx.verification.verdict import plain

    sys.stdout.write(json.dumps(plain(value), indent=2, default=str, allow_nan=False) + "\n")


def _documented(folder: Path | None) -> "list[Difference]":
    """Return the differences that a folder documents; none for no folder."""
    from fusion_onnx.verification.known import load

    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    return [] if folder is None else load(folder)


def _print_verdict(verdict: "Verdict") -> None:
    out.print(verdict.table())
    for reason in verdict.reasons:
        out.print(escape(reason), highlight=False, soft_wrap=True)
    for known in verdict.known:
        out.print(f"known difference: {escape(known)}", highlight=False, soft_wrap=True)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"fusion-onnx {fusion_onnx.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the whole trace of an error.")] = False,
) -> None:
    if traceback:
        os.environ[_TRACE] = "1"


@app.command("list")
@_reported
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
    if as_json:
        _print_json(rows)
        return
    table = Table(title="k inputs x_1 ... x_k, (..., n_i) each; D = n_1 + ... + n_k")
    table.add_column("strategy", no_wrap=True)
    for heading in ("output", "n", "l"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(escape(str(row[key])) for key in ("name", "formula", "n", "l")))
    out.print(table)


@app.command()
@_reported
def export(
    target: TargetName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)],
    opset: Annotated[int, typer.Option(help="Of the standard operators, 18 to 26.")] = 18,
    inline: Annotated[str, typer.Option(help="none: a node for each fusion; all: standard operators only.")] = "none",
    form: Annotated[
        str, typer.Option(help="auto, fastest, the name of a form, or a file that tune wrote (see inspect).")
    ] = "auto",
    optimize: Annotated[
        str, typer.Option(help="none, or algebra: between fusions and the linear layers beside them.")
    ] = "none",
    static: Annotated[bool, typer.Option("--static", help="Fix the batch size to the example's.")] = False,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            help="An input's dynamic axes, x:0=batch,1=time; repeat it for each that has any.", metavar="AXES"
        ),
    ] = None,
    input_names: Annotated[str | None, typer.Option(help="The graph's inputs, a,b,c.", metavar="NAMES")] = None,
    output_names: Annotated[str | None, typer.Option(help="Its outputs, y,z.", metavar="NAMES")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A state_dict for the module: torch.save's, or .safetensors.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="An argument of the target's callable, name=value; repeat it.", metavar="NAME=VALUE"
        ),
    ] = None,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Write the weights beside the model; over 2 GiB they have to be.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with eager execution.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Export a module with fusions in it to ONNX, verified against eager execution.

    Example: [bold]fusion-onnx export net.py:build -o net.onnx[/]
    """
    from fusion_exporters import VerificationError
    from fusion_onnx.target import load_target, load_weights, parsed_axes, parsed_options

    module, inputs = load_target(target, **parsed_options(options or []))
    if weights is not None:
        load_weights(module, weights)
    notes = [] if weights else _notes_on(target, module)
    try:
        result = fusion_onnx.export(
            module,
            inputs,
            output,
            dynamic=parsed_axes(dynamic) if dynamic else None if static else "batch",
            input_names=input_names.split(",") if input_names else None,
            output_names=output_names.split(",") if output_names else None,
            external_data=external_data,
            opset=opset,
            inline=inline,  # type: ignore[arg-type]  # export checks it
            form=form,
            optimize=optimize,  # type: ignore[arg-type]
            verify=not no_verify,
            overwrite=overwrite,
            providers=provider or "cpu",
        )
    except VerificationError as error:
        _print_json({"path": None, "verdict": error.verdict.to_dict()}) if as_json else _print_verdict(error.verdict)
        err.print("[bold red]the exported model differs from eager execution; nothing is written.[/]")
        raise typer.Exit(FAILED) from None
    verdict = result.verdict
    if as_json:
        facts = {"path": str(result.path), "bytes": output.stat().st_size, "notes": [*result.notes, *notes]}
        _print_json({**facts, "verdict": None if verdict is None else verdict.to_dict()})
        return
    if verdict is not None:
        _print_verdict(verdict)
    undone = next((p.value for p in result.model.metadata_props if p.key == "fusion_onnx.algebra"), "")
    if undone:
        out.print(f"algebra: {escape(undone)}", highlight=False, soft_wrap=True)
    session = fusion_onnx.Session(result, "cpu") if verdict is not None else None
    for kind, infos in () if session is None else (("inputs", session.inputs), ("outputs", session.outputs)):
        out.print(f"{kind}: {escape(', '.join(map(str, infos)))}", highlight=False, soft_wrap=True)
    for note in (*result.notes, *notes):
        out.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    out.print(f"{escape(str(result.path))}: {output.stat().st_size:,} bytes", highlight=False, soft_wrap=True)


def _notes_on(target: str, module: Any) -> list[str]:
    """Say where a target draws its weights each time it is built: the file is then the only copy of them."""
    name = target.rpartition(":")[2]
    drawn = type(module).__name__ == name and any(True for _ in module.parameters())
    return (
        [f"{name} is a class, whose weights are drawn anew each time: a function may load trained ones."]
        if drawn
        else []
    )


@app.command()
@_reported
def run(
    file: ModelFile,
    inputs: Annotated[Path, typer.Option("--inputs", "-i", help="A .npz with an array for each input, by name.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The .npz to write.")] = None,
    provider: Provider = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Run a model on the arrays of an .npz file, and write its outputs to another, or show them.

    Example: [bold]fusion-onnx run digits.onnx --inputs views.npz -o logits.npz[/]
    """
    import numpy as np

    if output is not None:
        vacant(output, overwrite=overwrite)
    session = fusion_onnx.Session(file, provider or "auto")
    results = session.run(_arrays(inputs))
    named = {info.name: np.asarray(array) for info, array in zip(session.outputs, results, strict=True)}
    facts = [{"name": n, "dtype": str(a.dtype), "shape": list(a.shape)} for n, a in named.items()]
    if output is not None:
        with written(output, overwrite=overwrite) as stream:
            _write_arrays(stream, named)
    elif as_json:
        facts = [{**fact, "values": array.tolist()} for fact, array in zip(facts, named.values(), strict=True)]
    if as_json:
        path = None if output is None else str(output)
        _print_json({"path": path, "providers": session.providers, "outputs": facts})
        return
    title = f"{output or file}, computed on {', '.join(session.providers)}"
    table = Table("output", "dtype", "shape", *([] if output else ["values"]), title=title)
    for fact, array in zip(facts, named.values(), strict=True):
        shown = [] if output else [np.array2string(array, threshold=20, edgeitems=2, precision=6)]
        table.add_row(*(escape(str(value)) for value in (*fact.values(), *shown)))
    out.print(table)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz, which holds an array for each input by name, as np.savez writes.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever numpy and zipfile meet in it: a password, a header of brackets, 2^40 rows
        raise ValueError(f"{path} cannot be read: {error}") from error


def _write_arrays(file: BinaryIO, arrays: dict[str, Any]) -> None:
    """Write an .npz; np.savez cannot take every name an output may have."""
    import numpy as np

    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


@app.command()
@_reported
def verify(
    target: TargetName,
    file: ModelFile,
    provider: Provider = None,
    battery: Annotated[
        bool, typer.Option("--battery", help="Also on hostile values: huge, tiny, NaN, Inf, odd layouts, ....")
    ] = False,
    locate: Annotated[bool, typer.Option("--locate", help="Name the first node that differs, and its fusion.")] = False,
    known: Known = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Compare a model with the module it was exported from.

    Example: [bold]fusion-onnx verify net.py:build net.onnx --battery --locate[/]
    """
    from fusion_onnx.target import load_target

    _writable(html)
    module, inputs = load_target(target)
    verdict = fusion_onnx.verify(module, file, inputs, provider or "cpu", battery=battery, known=_documented(known))
    found = None
    if locate and not verdict.passed:
        from fusion_onnx.verification import locate as first_fault

        found = first_fault(module, file, inputs, provider or "cpu", battery=battery)
    if html is not None:
        from fusion_onnx.verification.report import write_html

        write_html(html, verdict=verdict, location=found)
    if as_json:
        _print_json({**verdict.to_dict(), "location": found and found.to_dict()})
    else:
        _print_verdict(verdict)
        if found is not None:
            out.print(f"[bold]where it starts:[/] {escape(str(found))}", highlight=False, soft_wrap=True)
        elif locate and not verdict.passed:
            out.print("where it starts cannot be told: taken by itself, no fusion and no operator differs.")
    if not verdict.passed:
        err.print("Does the target give the weights that the file was exported with?")
        raise typer.Exit(FAILED)


@app.command()
@_reported
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

    from fusion_onnx.parity import matrix as run_matrix

    _writable(html)
    _writable(output)
    differences = _documented(known)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err) as progress:
        task = progress.add_task("starting", total=None)
        found = run_matrix(
            strategies or None,
            runtime or None,
            dtype or ("float32",),
            cases=cases or None,
            known=differences,
            report=lambda line: progress.update(task, description=escape(line)),
        )
    if output is not None:
        write_file(output, found.to_json().encode(), b"\n")
    if html is not None:
        from fusion_onnx.verification.report import write_html

        write_html(html, matrix=found)
    if as_json:
        _print_json(found.to_dict())
    else:
        for table in found.tables():
            out.print(table)
        for line in found.notes():
            out.print(escape(line), highlight=False, soft_wrap=True)
    if not found.passed:
        raise typer.Exit(FAILED)


def _writable(path: Path | None) -> None:
    """Raise before a long computation what would be raised after it."""
    if path is not None:
        vacant(path)


@app.command()
@_reported
def inspect(
    file: ModelFile,
    bodies: Annotated[bool, typer.Option("--bodies", help="Print the functions' bodies too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a model: inputs, outputs, fusions with their configs and bodies, opset, size.

    Example: [bold]fusion-onnx inspect digits.onnx --bodies[/]
    """
    from fusion_onnx.inspection import inspect_model

    found = inspect_model(file)
    if as_json:
        _print_json(found.to_dict())
        return
    header = found.header
    opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in header.opset_imports.items())
    table = Table(title=escape(str(file)), show_header=False)
    table.add_row("size", f"{header.size:,} bytes")
    table.add_row("opsets", opsets)
    table.add_row("producer", escape(header.producer))
    for kind, infos in (("input", header.inputs), ("output", header.outputs)):
        for info in infos:
            table.add_row(kind, escape(str(info)))
    operators = {op: n for (domain, op), n in sorted(header.ops.items()) if domain != "fusion_onnx"}
    table.add_row("operators", ", ".join(f"{op} × {n}" if n > 1 else op for op, n in operators.items()))
    if found.verification:
        v = found.verification
        verdict = "passed" if v.get("passed") else "failed"
        table.add_row(
            "verified", escape(f"{verdict} on {', '.join(v.get('providers', ()))}, largest error {v.get('max_error')}")
        )
    else:
        table.add_row("verified", "no")
    if found.algebra:
        table.add_row("algebra", escape(found.algebra))
    out.print(table)
    fusions = Table(title="fusions")
    for heading in ("fusion", "function", "config"):
        fusions.add_column(heading, overflow="fold")
    for node in found.fusions:
        options = node.config.get("function_parameters", {})
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        fusions.add_row(escape(node.name), escape(node.function), escape(shown))
    if found.fusions:
        out.print(fusions)
        if any(node.cost for node in found.fusions):
            out.print(_costs(found.fusions))
    for path, config in {} if found.fusions else found.configs.items():
        out.print(f"{escape(path)}: {escape(json.dumps(config))}", soft_wrap=True)
    if bodies:
        for body in dict.fromkeys(node.body for node in found.fusions):
            out.print(escape(body), highlight=False, soft_wrap=True)


def _other_numbers(config: Any) -> dict[str, str]:
    """Say of a fusion's forms which do not give eager's very numbers, and so are not taken by themselves."""
    try:
        forms = fusion_onnx.from_config(config).forms()
    except (ImportError, ValueError):  # without PyTorch, or a strategy of somebody else's
        return {}
    said = {
        name: ("other bits", "other Inf and NaN")[form.bitwise] for name, form in forms.items() if not form.faithful
    }
    return {name: f"on request: {why}" for name, why in said.items()}


def _costs(nodes: list[Any]) -> Table:
    """Show what each fusion's form costs, and below it the forms that were not taken."""
    sizes = sorted({f"{axis} {size}" for node in nodes for axis, size in (node.cost.get("sizes") or {}).items()})
    table = Table(title=f"forms, and what a call costs{' at ' + escape(', '.join(sizes)) if sizes else ''}")
    table.add_column("fusion", overflow="fold")
    table.add_column("form", overflow="fold")
    for heading in ("operations", "bytes", "weights", "µs, by the rule"):
        table.add_column(heading, justify="right")
    for node in nodes:
        rows = {str(node.cost.get("form", "")): node.cost, **(node.cost.get("others") or {})}
        other = _other_numbers(node.config)
        for form, cost in rows.items():
            by = f"{form}, by {cost['by']}" if cost.get("by") else form
            said = escape("; ".join(filter(None, [by, cost.get("algebra"), other.get(form)])))
            numbers = [cost.get(key) for key in ("operations", "bytes", "weights", "microseconds")]
            taken = cost is node.cost
            table.add_row(
                escape(node.name) if taken else "",
                said if taken else f"[dim]{said}[/]",
                *(f"{number:,}" if isinstance(number, int | float) else "" for number in numbers),
                style=None if taken else "dim",
            )
    table.caption = (
        "The rule takes the cheapest form that gives eager's bits, Inf and NaN; the first, where another is hardly "
        "cheaper. --form fastest takes the cheapest of all."
    )
    return table


@app.command()
@_reported
def tune(
    target: TargetName,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write, which export --form reads.")
    ] = Path("fusion-forms.json"),
    provider: Provider = None,
    seconds: Annotated[float, typer.Option(help="For each fusion.", min=0.01)] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the forms of a module's fusions on this machine, at the example's sizes, and store the choice.

    Example: [bold]fusion-onnx tune net.py:build -o forms.json[/], then [bold]export ... --form forms.json[/]
    """
    from fusion_exporters import tune as measure
    from fusion_onnx.target import load_target

    if output.suffix != ".json":
        raise ValueError(f"the file is JSON and its name ends so: {output}.json.")
    vacant(output, overwrite=overwrite)
    module, inputs = load_target(target)
    if inputs is None:
        raise ValueError(f"{target} gives no example inputs; the times depend on their sizes.")
    found = measure(module, inputs, provider or "cpu", seconds=seconds, report=lambda name: err.print(f"{name} ..."))
    found.write(output, overwrite=overwrite)
    if as_json:
        _print_json(json.loads(output.read_text(encoding="utf-8")))
        return
    table = Table(title=f"{output}, measured on {found.machine}")
    for heading in ("fusion", "rows", "form", "times"):
        table.add_column(heading, overflow="fold")
    for entry in found.entries:
        times = ", ".join(f"{form} {time * 1e6:,.1f} µs" for form, time in entry.seconds.items())
        table.add_row(escape(entry.fusion), f"{entry.rows:,}", entry.form, times)
    out.print(table)


@app.command()
@_reported
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
        vacant(output / "fusions.json", overwrite=overwrite)
    elif output is not None and os.path.lexists(output):
        raise FileExistsError(f"{output} exists and is no folder; name one for what bench writes.")
    else:
        _writable(output)
    for name in strategies or ():
        fusion_onnx.get(name)
    names = strategies or (), scenario or (), contender or ()
    rows = benchmark.run(*names, seconds, dtype=dtype, report=lambda line: err.print(escape(line)))
    if as_json:
        _print_json({"machine": benchmark.machine(), "rows": [dataclasses.asdict(row) for row in rows]})
    elif out.is_terminal:
        out.print(Markdown(benchmark.table(rows)))
    else:
        sys.stdout.write(benchmark.table(rows) + "\n")
    if output is not None:  # what was measured is shown, should it fail
        benchmark.write(output, rows, overwrite=overwrite)


@app.command()
@_reported
def doctor(as_json: Json = False) -> None:
    """Show versions, and which providers start on this machine and why the others do not.

    Example: [bold]fusion-onnx doctor[/]
    """
    packages = ("fusion-onnx", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "onnx-ir", "onnxscript")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    advice = []
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        advice.append("onnxruntime and onnxruntime-gpu are both installed and overwrite each other: keep one.")
    try:
        statuses = fusion_onnx.runtime.diagnose()
        unfused = fusion_onnx.runtime.why_not_fused()
    except ImportError as error:
        statuses, unfused = [], "onnxruntime is not installed"
        advice.append(str(error))
    if versions["torch"] is None or versions["onnxscript"] is None:
        advice.append("exporting needs pip install 'fusion-onnx[export]'.")
    if as_json:
        providers = [{k: getattr(s, k) for k in ("name", "alias", "starts", "reason", "fix")} for s in statuses]
        _print_json({"versions": versions, "providers": providers, "unfused": unfused, "advice": advice})
        return
    table = Table("package", "version", title="versions")
    for name, number in versions.items():
        table.add_row(name, number or "[dim]not installed[/]")
    out.print(table)
    table = Table(title="execution providers")
    table.add_column("provider", no_wrap=True)
    for heading in ("starts", "why not", "what helps"):
        table.add_column(heading)
    for s in statuses:
        table.add_row(
            s.name.removesuffix("ExecutionProvider"),
            "[green]yes[/]" if s.starts else "[red]no[/]",
            escape(s.reason),
            escape(s.fix),
        )
    if statuses:
        out.print(table)
    said = f"no: {unfused}" if unfused else "yes: entrywise fusions are one pass over memory on the CPU"
    out.print(f"fused kernels: {escape(said)}", highlight=False, soft_wrap=True)
    for line in advice:
        out.print(f"[yellow]note:[/] {escape(line)}")


def main() -> None:
    """Run the command line."""
    interruption.watch()
    app()


if __name__ == "__main__":
    main()
