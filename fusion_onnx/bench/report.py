"""What a benchmark writes: its rows as JSON, as tables, and as plots."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from fusion_onnx.bench.contenders import CONTENDERS
from fusion_onnx.bench.rows import Row, machine, short
from fusion_onnx.files import write_file


def write(folder: Path, rows: list[Row], *, overwrite: bool = True) -> None:
    """Write the rows as fusions.json and fusions.md, and where matplotlib is installed as two plots, short and full.

    Raises FileExistsError where fusions.json is there and not to be replaced; the rest is not looked at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(), "rows": [asdict(r) for r in rows]}
    write_file(folder / "fusions.json", json.dumps(data, indent=1).encode(), b"\n", overwrite=overwrite)
    write_file(folder / "fusions.md", table(rows).encode(), b"\n")
    with contextlib.suppress(ImportError):
        from fusion_onnx.bench.plot import ratios, summary  # matplotlib may be missing

        summary(rows, folder / "fusions.png")
        ratios(rows, folder / "fusions_detail.png")


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown: times interleaved, as a multiple of the floor's, and alone; then the files."""
    lines = ["Each cell: the median time beside the others (as a multiple of the floor), and alone.", ""]
    lines += [
        f"- {c.replace('_', ' ')}: {CONTENDERS[c].__doc__}" for c in CONTENDERS if any(c in r.interleaved for r in rows)
    ]
    lines.append("")
    for scenario in dict.fromkeys(r.scenario for r in rows):
        here = [r for r in rows if r.scenario == scenario]
        contenders = [c for c in CONTENDERS if any(c in r.interleaved for r in here)]
        heads = ["strategy", "floor", *(c.replace("_", " ") for c in contenders)]
        lines += [f"### {scenario}", "", f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
        for r in here:
            cells = [
                f"{short(r.interleaved[c])} ({r.interleaved[c] / r.floor:.2f} ×), {short(r.isolated[c])}"
                if c in r.interleaved
                else "–"
                for c in contenders
            ]
            limit = " (operations)" if r.floor > r.copy else ""
            lines.append(f"| {r.strategy} | {short(r.floor)}{limit} | {' | '.join(cells)} |")
        absent: dict[str, list[str]] = {}
        for r in here:
            for contender, why in r.failed.items():
                absent.setdefault(f"{contender.replace('_', ' ')}: {why}", []).append(r.strategy)
        strategies = {why: "all" if len(names) == len(here) else ", ".join(names) for why, names in absent.items()}
        lines += ["", *(f"- {why} ({names})" for why, names in strategies.items())]
        lines.append("")
    lines += _files([r for r in rows if r.files])
    return "\n".join(lines)


def _files(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    heads = ["strategy", "scenario", "export, s", "load, ms", "file, kB", "peak memory, MB"]
    lines = ["### Files: ours, and a plain export", "", f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|---:|"]
    for r in rows:
        units = (("export", 1.0), ("load", 1e3), ("bytes", 1e-3), ("peak", 1e-6))
        cells = [
            ", ".join(f"{facts[key] * unit:,.3g}" if key in facts else "–" for facts in r.files.values())
            for key, unit in units
        ]
        lines.append(f"| {r.strategy} | {r.scenario} | {' | '.join(cells)} |")
    return [*lines, ""]
