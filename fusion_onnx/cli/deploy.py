"""A command for where models are deployed: deploy."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fusion_onnx.cli.app import Json, ModelFile, Overwrite, command, show


@command()
def deploy(
    target: Annotated[
        str,
        typer.Argument(
            help="where the model goes, such as openvino; an unknown name lists all there are", show_default=False
        ),
    ],
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model in the form in which a deployment target takes it.

    Example: [bold]fusion-onnx deploy openvino net.onnx -o net.xml[/]
    """
    from fusion_exporters import targets

    files = targets.deploy(target, model, output, overwrite=overwrite)
    show(as_json, {"target": target, "files": list(map(str, files))}, [f"wrote {escape(str(file))}" for file in files])
