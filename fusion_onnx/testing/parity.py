"""`assert_parity`: a test's one line that a module, exported to ONNX, computes what eager execution does.

    >>> def test_mine():
    ...     assert_parity(MyNetwork(), (torch.randn(4, 8),))

It raises what a test understands, with the reasons in it, and needs no test framework.
"""

from typing import TYPE_CHECKING, Any

import torch

from fusion_exporters import export
from fusion_onnx.runtime import Providers
from fusion_onnx.verification import Verdict, locate, verify
from fusion_onnx.verification.arguments import ExampleInputs
from fusion_onnx.verification.verdict import Finding

if TYPE_CHECKING:
    from fusion_onnx.runtime import ModelLike

SHOWN = 10


class ParityError(AssertionError):
    """The model differs from eager execution.

    verdict: every comparison; location: where the difference starts, a `verification.locate.Location`, or None.
    """

    def __init__(self, verdict: Verdict, location: Any = None, note: str = "") -> None:
        super().__init__(verdict, location, note)
        self.verdict, self.location, self.note = verdict, location, note

    def __str__(self) -> str:
        verdict = self.verdict
        failed = [f for f in verdict.findings if not f.passed]
        lines = [
            f"the model differs from eager execution on {', '.join(verdict.providers)}: "
            f"{len(failed)} of {len(verdict.findings)} findings failed",
            *(f"  {_reason(finding)}" for finding in failed[:SHOWN]),
        ]
        if len(failed) > SHOWN:
            lines.append(f"  and {len(failed) - SHOWN} more, in `.verdict.reasons`")
        lines.append(f"tolerance: {verdict.rule}")
        if self.location is not None:
            lines.append(f"where it starts: {self.location}")
        return "\n".join(lines + [self.note] * bool(self.note))


def assert_parity(
    module: torch.nn.Module,
    inputs: ExampleInputs | None,
    *,
    model: "ModelLike | None" = None,
    providers: Providers = "cpu",
    battery: bool = True,
    dynamic: Any = "batch",
    opset: int = 18,
) -> Verdict:
    """Export a module, run it in ONNX Runtime, and fail unless every output agrees with eager execution.

    Args:
        module: any torch.nn.Module.
        inputs: a tuple of the positional arguments of its forward, as `export` takes them.
        model: what was exported from it before, as `verify` takes it: then nothing is exported, and dynamic and opset
            say nothing.
        providers: where it runs, as `Session` takes them.
        battery: also on hostile values and layouts.
        dynamic: which axes are dynamic, as `export` takes it.
        opset: of the standard operators, 18 to 26.

    Returns:
        Verdict: what was compared; it passed.

    Raises:
        ParityError: (an AssertionError) an output differs. ExportError, SessionError, FusionError: as `export` and
            `verify`.
    """
    __tracebackhide__ = True
    if model is None:
        model = export(module, inputs, verify=False, dynamic=dynamic, opset=opset)
    verdict = verify(module, model, inputs, providers, battery=battery)
    if verdict.passed:
        return verdict
    location, note = _located(module, model, inputs, providers, battery)
    raise ParityError(verdict, location, note)


def _located(
    module: torch.nn.Module, model: "ModelLike", inputs: ExampleInputs | None, providers: Providers, battery: bool
) -> tuple[Any, str]:
    """Return where the difference starts, or why that is not known; whatever happens, the verdict is what counts."""
    try:
        return locate(module, model, inputs, providers, battery=battery), ""
    except Exception as error:
        return None, f"where it starts is not known: {type(error).__name__}: {error}"


def _reason(finding: Finding) -> str:
    return f"{finding.case}, {finding.output or 'all outputs'}: {finding.failed}: {finding.detail}"
