"""A command about this machine: doctor."""

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

import fusion_onnx
from fusion_onnx.cli.app import Json, command, out, show

if TYPE_CHECKING:
    from fusion_onnx.runtime import ProviderStatus


@command(position=90)
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
    providers = [{k: getattr(s, k) for k in ("name", "alias", "starts", "reason", "fix")} for s in statuses]
    data = {"versions": versions, "providers": providers, "unfused": unfused, "advice": advice}
    show(as_json, data, _of_machine(versions, statuses, unfused, advice))


def _of_machine(
    versions: dict[str, str | None], statuses: "Sequence[ProviderStatus]", unfused: str, advice: Sequence[str]
) -> Iterator[RenderableType]:
    table = Table("package", "version", title="versions")
    for name, number in versions.items():
        table.add_row(name, number or "[dim]not installed[/]")
    yield table
    table = Table(title="execution providers")
    table.add_column("provider", no_wrap=True)
    for heading in ("starts", "why not", "what helps"):
        table.add_column(heading)
    for status in statuses:
        table.add_row(
            status.name.removesuffix("ExecutionProvider"),
            "[green]yes[/]" if status.starts else "[red]no[/]",
            escape(status.reason),
            escape(status.fix),
        )
    if statuses:
        yield table
    fused = f"no: {unfused}" if unfused else "yes: entrywise fusions are one pass over memory on the CPU"
    yield f"fused kernels: {escape(fused)}"
    for line in advice:
        yield out.render_str(f"[yellow]note:[/] {escape(line)}")
