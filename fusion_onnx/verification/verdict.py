"""A verdict: what was compared, what was found, and whether all of it passed; for people and for machines."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """One output at one batch size and one class of values.

    failed: the first check that failed (count, names, declared, dtype, shape, nan, inf, error; run, eager where one
    of the two did not run; fusion where the outputs are right and a fusion by itself is not), empty where all passed;
    error: the largest |model - eager|; ratio: the largest error / tolerance, and at: the entry that has it, with
    the tolerance there; undetermined: how many entries the order of operations decides, so that nothing was
    compared; flips: how many entries are as a comparison or a rounding gives them that came out the other way, where
    rounding decides it; eager_ratio, model_ratio: how far each is from float64, as a share of its own part of the
    tolerance (None where float64 is no better); known: the difference of the runtime's own that the failed check shows,
    with which the finding passes.
    """

    case: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    failed: str
    detail: str
    error: float
    tolerance: float
    ratio: float
    at: tuple[int, ...]
    undetermined: int = 0
    eager_ratio: float | None = None
    model_ratio: float | None = None
    flips: int = 0
    known: str = ""

    @property
    def passed(self) -> bool:
        """Whether all checks passed, or what failed is a known difference of the runtime's own."""
        return not self.failed or bool(self.known)


SCHEMA = "fusion-onnx/verdict/2"


@dataclass(frozen=True)
class Verdict:
    """The findings for every output at every batch size; true where all passed."""

    findings: tuple[Finding, ...]
    providers: tuple[str, ...]
    rule: str

    @property
    def passed(self) -> bool:
        """Whether every output passed at every batch size."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def max_error(self) -> float:
        """The largest |model - eager| over all outputs and batch sizes, known differences aside."""
        return max((finding.error for finding in self.findings if not finding.known), default=0.0)

    @property
    def max_ratio(self) -> float:
        """ρ: the largest error / tolerance over all outputs, sizes and values, known differences aside."""
        return max((finding.ratio for finding in self.findings if not finding.known), default=0.0)

    @property
    def known(self) -> list[str]:
        """What differs and is documented, each once: a title, and the cases that show it."""
        cases: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.known:
                cases.setdefault(finding.known, []).append(finding.case)
        return [f"{title} ({', '.join(dict.fromkeys(where))})" for title, where in cases.items()]

    def __bool__(self) -> bool:
        return self.passed

    def summary(self) -> dict[str, Any]:
        """Return what goes into the model's metadata."""
        return {
            "passed": self.passed,
            "cases": sorted({finding.case for finding in self.findings}),
            "providers": list(self.providers),
            "max_error": float(f"{self.max_error:.3g}"),
            "max_ratio": float(f"{self.max_ratio:.3g}"),
            "tolerance": self.rule,
            "known": self.known,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all findings as plain data."""
        findings = [{**asdict(f), "passed": f.passed, "shape": list(f.shape), "at": list(f.at)} for f in self.findings]
        return {"schema": SCHEMA, **self.summary(), "findings": findings}

    def to_json(self) -> str:
        """Return all findings as JSON."""
        return json.dumps(plain(self.to_dict()), indent=2)

    def table(self) -> "Table":
        """Return a rich table of the findings."""
        from rich.markup import escape
        from rich.table import Table

        title = f"verification on {', '.join(self.providers)}: {'passed' if self.passed else 'FAILED'}"
        table = Table(title=title, caption=f"tolerance: {self.rule}", title_style="bold green" if self else "bold red")
        table.add_column("case", overflow="fold")
        table.add_column("output", overflow="fold")
        for heading in ("error", "allowed", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for f in self.findings:
            verdict = "[green]equal[/]" if not f.failed else f"[{'yellow' if f.known else 'red'}]{f.failed}[/]"
            numbers = (f"{f.error:.2e}", f"{f.tolerance:.2e}", f"{f.ratio:.2f}")
            table.add_row(f.case, escape(f"{f.output} {f.dtype}{list(f.shape)}"), *numbers, verdict)
        return table

    @property
    def reasons(self) -> list[str]:
        """One line for each finding that failed: where, which check, and the numbers."""
        return [f"{f.case}, {f.output or 'all outputs'}: {f.failed}: {f.detail}" for f in self.findings if not f.passed]

    def __str__(self) -> str:
        lines = [f"{'passed' if self.passed else 'FAILED'} on {', '.join(self.providers)}; tolerance: {self.rule}"]
        for f in self.findings:
            what = f"{f.failed}: {f.detail}" if f.failed else f"equal, {f.flips} flips" if f.flips else "equal"
            what += f" [known: {f.known}]" if f.known else ""
            lines.append(f"  {f.case}, {f.output} {list(f.shape)} {f.dtype}: {what} (largest error {f.error:.3g})")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Verdict({'passed' if self.passed else 'FAILED'}, largest error {self.max_error:.3g})"


def plain(value: Any) -> Any:
    """Replace what JSON has no word for: NaN and infinities become text."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
