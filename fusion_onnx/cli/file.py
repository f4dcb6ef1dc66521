"""Commands that take a model's file: run, inspect."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

import fusion_onnx
from fusion_onnx.cli.app import Json, ModelFile, Overwrite, Provider, command, show, writable
from fusion_onnx.cli.inspection import FusionNode, Inspection, inspect_model
from fusion_onnx.file_format import DOMAIN
from fusion_onnx.files import written

if TYPE_CHECKING:
    import numpy as np


@command(position=30)
def run(
    file: ModelFile,
    inputs: Annotated[Path, typer.Option("--inputs", "-i", help="A .npz with an array for each input, by name.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The .npz to write.")] = None,
    provider: Provider = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run a model on the arrays of an .npz file, and write its outputs to another, or show them.

    Example: [bold]fusion-onnx run digits.onnx --inputs views.npz -o logits.npz[/]
    """
    import numpy as np

    writable(output, overwrite=overwrite)
    session = fusion_onnx.Session(file, provider or "auto")
    results = session.run(_arrays(inputs))
    arrays = {info.name: np.asarray(array) for info, array in zip(session.outputs, results, strict=True)}
    facts = [{"name": name, "dtype": str(a.dtype), "shape": list(a.shape)} for name, a in arrays.items()]
    if output is not None:
        with written(output, overwrite=overwrite) as stream:
            _write_arrays(stream, arrays)
    elif as_json:
        facts = [{**fact, "values": array.tolist()} for fact, array in zip(facts, arrays.values(), strict=True)]
    data = {"path": output and str(output), "providers": session.providers, "outputs": facts}
    show(as_json, data, _of_run(output or file, session.providers, arrays, values=output is None))


def _of_run(
    path: Path, providers: list[str], arrays: "dict[str, np.ndarray[Any, Any]]", *, values: bool
) -> Iterator[RenderableType]:
    import numpy as np

    table = Table("output", "dtype", "shape", title=f"{path}, computed on {', '.join(providers)}")
    if values:
        table.add_column("values")
    for name, array in arrays.items():
        row = [name, str(array.dtype), str(list(array.shape))]
        if values:
            row.append(np.array2string(array, threshold=20, edgeitems=2, precision=6))
        table.add_row(*map(escape, row))
    yield table


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


@command(position=60)
def inspect(
    file: ModelFile,
    bodies: Annotated[bool, typer.Option("--bodies", help="Print the functions' bodies too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a model: inputs, outputs, fusions with their configs and bodies, opset, size.

    Example: [bold]fusion-onnx inspect digits.onnx --bodies[/]
    """
    inspection = inspect_model(file)
    show(as_json, inspection.to_dict(), _of_inspection(inspection, str(file), bodies))


def _of_inspection(inspection: Inspection, title: str, bodies: bool) -> Iterator[RenderableType]:
    yield _of_graph(inspection, title)
    if inspection.fusions:
        yield _of_fusions(inspection.fusions)
        if any(node.cost for node in inspection.fusions):
            yield _of_costs(inspection.fusions)
    else:
        for path, config in inspection.configs.items():
            yield f"{escape(path)}: {escape(json.dumps(config))}"
    if bodies:
        yield from map(escape, dict.fromkeys(node.body for node in inspection.fusions))


def _of_graph(inspection: Inspection, title: str) -> Table:
    header = inspection.header
    table = Table(title=escape(title), show_header=False)
    table.add_row("size", f"{header.size:,} bytes")
    opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in header.opset_imports.items())
    table.add_row("opsets", opsets)
    table.add_row("producer", escape(header.producer))
    for kind, infos in (("input", header.inputs), ("output", header.outputs)):
        for info in infos:
            table.add_row(kind, escape(str(info)))
    operators = {op: n for (domain, op), n in sorted(header.ops.items()) if domain != DOMAIN}
    table.add_row("operators", ", ".join(f"{op} × {n}" if n > 1 else op for op, n in operators.items()))
    text, v = "no", inspection.verification
    if v:
        outcome = "passed" if v.get("passed") else "failed"
        text = f"{outcome} on {', '.join(v.get('providers', ()))}, largest error {v.get('max_error')}"
    table.add_row("verified", escape(text))
    if inspection.algebra:
        table.add_row("algebra", escape(inspection.algebra))
    return table


def _of_fusions(nodes: list[FusionNode]) -> Table:
    table = Table(title="fusions")
    for heading in ("fusion", "function", "config"):
        table.add_column(heading, overflow="fold")
    for node in nodes:
        options = node.config.get("function_parameters", {})
        config = ", ".join(f"{key}={value}" for key, value in options.items())
        table.add_row(escape(node.name), escape(node.function), escape(config))
    return table


def _of_costs(nodes: list[FusionNode]) -> Table:
    """Show what each fusion's form costs, and below it the forms that were not taken."""
    sizes = sorted({f"{axis} {size}" for node in nodes for axis, size in (node.cost.get("sizes") or {}).items()})
    table = Table(title=f"forms, and what a call costs{' at ' + escape(', '.join(sizes)) if sizes else ''}")
    table.add_column("fusion", overflow="fold")
    table.add_column("form", overflow="fold")
    for heading in ("operations", "bytes", "weights", "µs, by the rule"):
        table.add_column(heading, justify="right")
    for node in nodes:
        rows = {str(node.cost.get("form", "")): node.cost, **(node.cost.get("others") or {})}
        reasons = _other_numbers(node.config)
        for form, cost in rows.items():
            name = f"{form}, by {cost['by']}" if cost.get("by") else form
            text = escape("; ".join(filter(None, [name, cost.get("algebra"), reasons.get(form)])))
            numbers = [cost.get(key) for key in ("operations", "bytes", "weights", "microseconds")]
            is_written = cost is node.cost
            table.add_row(
                escape(node.name) if is_written else "",
                text if is_written else f"[dim]{text}[/]",
                *(f"{number:,}" if isinstance(number, int | float) else "" for number in numbers),
                style=None if is_written else "dim",
            )
    table.caption = (
        "The rule takes the cheapest form that gives eager's bits, Inf and NaN; the first, where another is hardly "
        "cheaper. --form fastest takes the cheapest of all."
    )
    return table


def _other_numbers(config: Any) -> dict[str, str]:
    """Say of a fusion's forms which do not give eager's very numbers, and so are not taken by themselves."""
    try:
        forms = fusion_onnx.from_config(config).forms()
    except (ImportError, ValueError):  # without PyTorch, or a strategy of somebody else's
        return {}
    differences = ("other bits", "other Inf and NaN")
    return {name: f"on request: {differences[form.bitwise]}" for name, form in forms.items() if not form.drop_in}
