"""What all commands share: how a function becomes a command, how errors are reported, how results are printed."""

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

import fusion_onnx
from fusion_onnx.cli import interruption
from fusion_onnx.errors import explained
from fusion_onnx.files import vacant

if TYPE_CHECKING:
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
FAILED, USAGE = 1, 2
_TRACE = "FUSION_ONNX_TRACE"  # set it to see the whole trace of an error

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Provider = Annotated[
    list[str] | None,
    typer.Option("--provider", "-p", help="auto, cpu, cuda, or a provider's full name; repeat it for an order."),
]
ModuleAddress = Annotated[str, typer.Argument(help="path/to/file.py:callable or package.module:callable")]
ModelFile = Annotated[Path, typer.Argument(help="an ONNX file", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
Known = Annotated[
    Path | None, typer.Option("--known", help="A folder of documented differences, such as docs/differences.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page.", show_default=False)]

Command = Callable[..., None]
_positions: dict[Any, float] = {}


def command(name: str | None = None, *, position: float = math.inf) -> Callable[[Command], Command]:
    """Make a function a command, under its own name or this one; `--help` lists those without a position last."""

    def register(function: Command) -> Command:
        registered = reported(function)
        _positions[registered] = position
        app.command(name)(registered)
        app.registered_commands.sort(key=lambda entry: _positions.get(entry.callback, math.inf))
        return registered

    return register


def reported(function: Command) -> Command:
    """Turn the errors a user can cause into one line and exit code 2; those of the program itself keep their trace."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            if interruption.happened():  # what an import that is cut off leaves behind
                raise typer.Exit(interruption.CODE) from None
            own = isinstance(error, (ValueError, OSError, ImportError, fusion_onnx.SessionError))
            if os.environ.get(_TRACE) or not own:
                raise
            err.print(f"[bold red]error:[/] {escape(_message(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(USAGE) from None

    return wrapped


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, ModuleNotFoundError):
        return str(explained(error, "this command"))
    return str(error)


def show(as_json: bool, data: Any, parts: Iterable[RenderableType]) -> None:
    """Print a command's result: the data as JSON if asked, or else each part; a string is a line that may be long.

    A generator's parts are made only where they are printed.
    """
    if as_json:
        from fusion_onnx.verification.verdict import plain

        sys.stdout.write(json.dumps(plain(data), indent=2, default=str, allow_nan=False) + "\n")
        return
    for part in parts:
        if isinstance(part, str):
            out.print(part, highlight=False, soft_wrap=True)
        else:
            out.print(part)


def writable(path: Path | None, *, overwrite: bool = True) -> None:
    """Raise before a long computation what writing the file would raise after it; None is no file."""
    if path is not None:
        vacant(path, overwrite=overwrite)


def documented(folder: Path | None) -> "list[Difference]":
    """Return the differences that a folder documents; none for no folder."""
    from fusion_onnx.verification.known import load

    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    return [] if folder is None else load(folder)


def _show_version(requested: bool) -> None:
    if requested:
        out.print(f"fusion-onnx {fusion_onnx.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the whole trace of an error.")] = False,
) -> None:
    if traceback:
        os.environ[_TRACE] = "1"


def main() -> None:
    """Run the command line."""
    interruption.watch()
    app()
