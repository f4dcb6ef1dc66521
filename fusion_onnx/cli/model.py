"""Commands that take a module: export, verify, tune."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import fusion_onnx
from fusion_onnx.cli.app import (
    FAILED,
    Html,
    Json,
    Known,
    ModelFile,
    ModuleAddress,
    Overwrite,
    Provider,
    command,
    documented,
    err,
    show,
    writable,
)
from fusion_onnx.cli.module import load_module, load_weights, parsed_axes, parsed_options
from fusion_onnx.file_format import ALGEBRA

if TYPE_CHECKING:
    from fusion_exporters import ExportResult, Tuning
    from fusion_onnx.verification import Location, Verdict


@command(position=20)
def export(
    module: ModuleAddress,
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
            "--set", help="An argument of the module's callable, name=value; repeat it.", metavar="NAME=VALUE"
        ),
    ] = None,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Write the weights beside the model; over 2 GiB they have to be.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with eager execution.")] = False,
    overwrite: Overwrite = False,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Export a module with fusions in it to ONNX, verified against eager execution.

    Example: [bold]fusion-onnx export net.py:build -o net.onnx[/]
    """
    from fusion_exporters import VerificationError

    network, inputs = load_module(module, **parsed_options(options or []))
    if weights is not None:
        load_weights(network, weights)
    notes = [] if weights else _notes_on(module, network)
    try:
        result = fusion_onnx.export(
            network,
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
        show(as_json, {"path": None, "verdict": error.verdict.to_dict()}, _of_verdict(error.verdict))
        err.print("[bold red]the exported model differs from eager execution; nothing is written.[/]")
        raise typer.Exit(FAILED) from None
    notes = [*result.notes, *notes]
    size = output.stat().st_size
    verdict = None if result.verdict is None else result.verdict.to_dict()
    facts = {"path": str(result.path), "bytes": size, "notes": notes, "verdict": verdict}
    show(as_json, facts, _of_export(result, notes, size))


def _notes_on(module: str, network: Any) -> list[str]:
    """Say where a callable draws its weights each time it is built: the file is then the only copy of them."""
    name = module.rpartition(":")[2]
    random = type(network).__name__ == name and any(True for _ in network.parameters())
    text = f"{name} is a class, whose weights are drawn anew each time: a function may load trained ones."
    return [text] if random else []


def _of_export(result: "ExportResult", notes: Sequence[str], size: int) -> Iterator[RenderableType]:
    if result.verdict is not None:
        yield from _of_verdict(result.verdict)
    undone = next((p.value for p in result.model.metadata_props if p.key == ALGEBRA), "")
    if undone:
        yield f"algebra: {escape(undone)}"
    if result.verdict is not None:
        session = fusion_onnx.Session(result, "cpu")
        for kind, infos in (("inputs", session.inputs), ("outputs", session.outputs)):
            yield f"{kind}: {escape(', '.join(map(str, infos)))}"
    for note in notes:
        yield f"[yellow]note:[/] {escape(note)}"
    yield f"{escape(str(result.path))}: {size:,} bytes"


def _of_verdict(verdict: "Verdict") -> Iterator[RenderableType]:
    yield verdict.table()
    yield from map(escape, verdict.reasons)
    for known in verdict.known:
        yield f"known difference: {escape(known)}"


@command(position=40)
def verify(
    module: ModuleAddress,
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
    writable(html)
    network, inputs = load_module(module)
    verdict = fusion_onnx.verify(network, file, inputs, provider or "cpu", battery=battery, known=documented(known))
    location = None
    if locate and not verdict.passed:
        location = fusion_onnx.locate(network, file, inputs, provider or "cpu", battery=battery)
    if html is not None:
        from fusion_onnx.verification.report import write_html

        write_html(html, verdict=verdict, location=location)
    facts = {**verdict.to_dict(), "location": location and location.to_dict()}
    show(as_json, facts, _of_comparison(verdict, location, locate))
    if not verdict.passed:
        err.print("Does the module have the weights that the file was exported with?")
        raise typer.Exit(FAILED)


def _of_comparison(verdict: "Verdict", location: "Location | None", locate: bool) -> Iterator[RenderableType]:
    yield from _of_verdict(verdict)
    if location is not None:
        yield f"[bold]where it starts:[/] {escape(str(location))}"
    elif locate and not verdict.passed:
        yield Text("where it starts cannot be told: taken by itself, no fusion and no operator differs.")


@command(position=70)
def tune(
    module: ModuleAddress,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write, which export --form reads.")
    ] = Path("fusion-forms.json"),
    provider: Provider = None,
    seconds: Annotated[float, typer.Option(help="For each fusion.", min=0.01)] = 1.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure the forms of a module's fusions on this machine, at the example's sizes, and store the choice.

    Example: [bold]fusion-onnx tune net.py:build -o forms.json[/], then [bold]export ... --form forms.json[/]
    """
    from fusion_exporters import tune as measure

    if output.suffix != ".json":
        raise ValueError(f"the file is JSON and its name ends so: {output}.json.")
    writable(output, overwrite=overwrite)
    network, inputs = load_module(module)
    if inputs is None:
        raise ValueError(f"{module} gives no example inputs; the times depend on their sizes.")
    tuning = measure(network, inputs, provider or "cpu", seconds=seconds, report=lambda name: err.print(f"{name} ..."))
    tuning.write(output, overwrite=overwrite)
    show(as_json, json.loads(output.read_text(encoding="utf-8")), _of_tuning(tuning, output))


def _of_tuning(tuning: "Tuning", output: Path) -> Iterator[RenderableType]:
    table = Table(title=f"{output}, measured on {tuning.machine}")
    for heading in ("fusion", "rows", "form", "times"):
        table.add_column(heading, overflow="fold")
    for entry in tuning.entries:
        times = ", ".join(f"{form} {time * 1e6:,.1f} µs" for form, time in entry.seconds.items())
        table.add_row(escape(entry.fusion), f"{entry.rows:,}", entry.form, times)
    yield table
