"""A command for where models are deployed: deploy."""

from pathlib import Path
from typing import Annotated

import typer

from fusion_onnx.cli.app import ModelFile, Overwrite, command, out


@command()
def deploy(
    target: Annotated[str, typer.Argument(help="where the model goes, such as openvino", show_default=False)],
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a model in the form in which a deployment target takes it.

    Example: [bold]fusion-onnx deploy openvino net.onnx -o net.xml[/]
    """
    from fusion_exporters import targets

    for path in targets.deploy(target, model, output, overwrite=overwrite):
        out.print(f"wrote {path}", highlight=False, soft_wrap=True)
