"""A report as one HTML page that stands alone: nothing is fetched, no script runs; for a screen, a phone or paper.

    >>> write_html("matrix.html", matrix=matrix(["median"]))
    >>> write_html("verdict.html", verdict=verdict, location=locate(module, model, inputs))

A matrix or a verdict may also be given as the plain data of its `to_dict`, or as that data read back from JSON.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_onnx.files import vacant, write_file
from fusion_onnx.verification.compare import BINS
from fusion_onnx.verification.verdict import Verdict

if TYPE_CHECKING:
    from jinja2 import Template

    from fusion_onnx.testing.matrix import Matrix

TITLE = "fusion-onnx: parity with eager execution"
TOP = 20
MARKS = {"equal": "✓", "partly": "◐", "differs": "✗", "cannot": "⊘", "missing": "–"}
_LOCATION = ("node", "fusion", "strategy", "fault", "case", "detail")
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_SAID = (("equal", "equal"), ("partly", "partly"), ("differs", "differ"), ("cannot", "cannot"), ("missing", "missing"))

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """One verdict of several on a page: what it is called, and where its difference starts, if that is known."""

    title: str
    verdict: "Verdict | Data"
    location: Any = None


def write_html(
    path: str | os.PathLike[str],
    *,
    matrix: "Matrix | Data | None" = None,
    verdict: Verdict | Data | None = None,
    location: Any = None,
    checks: Iterable[Checked] | None = None,
    title: str = TITLE,
) -> Path:
    """Write the page to a file, replacing one that is there; the arguments are those of `html`.

    Raises:
        FileNotFoundError: the file's folder does not exist. OSError: it cannot be written.
        ValueError, ImportError: as `html`.
    """
    vacant(path)
    page = html(matrix=matrix, verdict=verdict, location=location, checks=checks, title=title)
    write_file(path, page.encode("utf-8", "backslashreplace"))  # a runtime's message may hold half a surrogate pair
    return Path(path)


def html(
    *,
    matrix: "Matrix | Data | None" = None,
    verdict: Verdict | Data | None = None,
    location: Any = None,
    checks: Iterable[Checked] | None = None,
    title: str = TITLE,
) -> str:
    """Return the page.

    Args:
        matrix: strategies × runtimes, from `testing.matrix`.
        verdict: from `verify`.
        location: where the verdict's difference starts: anything with the attributes, or keys, node, fusion, strategy,
            fault, case and detail.
        checks: several verdicts, each with its title; none at all is a page that says so.
        title: the page's heading.

    Raises:
        ValueError: there is nothing to report. ImportError: jinja2 is not installed.
    """
    if matrix is None and verdict is None and checks is None:
        raise ValueError("a report shows a matrix, a verdict or checks; got none of them: pass one.")
    entries = list(checks or ())
    if verdict is not None:
        entries.insert(0, Checked("Verdict", verdict, location))
    return _template().render(
        title=title,
        matrix=None if matrix is None else _matrix(_data(matrix)),
        checks=None if verdict is None and checks is None else [_check(i, check) for i, check in enumerate(entries)],
    )


def _template() -> "Template":
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise ImportError(f"an HTML report needs {error.name}, which comes with torch: pip install jinja2") from error

    def broken(text: str) -> Markup:
        """Let a line break after each underscore of a name."""
        return Markup("_<wbr>").join(text.split("_"))

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"num": number, "name": broken, "count": lambda n: f"{n:,}"}
    environment.globals |= {"marks": MARKS, "top": TOP}
    return environment.from_string(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))


def number(value: Any, digits: int = 3) -> str:
    """Return a number as the page shows it; NaN and infinities may be given as JSON's text for them."""
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}"


def _data(cells_by_key: Any) -> Data:
    data: Data = cells_by_key if isinstance(cells_by_key, Mapping) else cells_by_key.to_dict()
    return data


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


# --- a verdict ------------------------------------------------------------------------------------------------------


def _check(place: int, check: Checked) -> Data:
    data = _data(check.verdict)
    failed = [finding for finding in data["findings"] if not finding["passed"]]
    location = check.location if check.location is not None else data.get("location")
    if location is not None and not isinstance(location, Mapping):
        location = {key: getattr(location, key) for key in _LOCATION}
    count = f"{_counted(len(data['findings']), 'output', 'outputs')} compared"
    result = f"{len(failed):,} failed" if failed else "all equal" if data["passed"] else "no result"
    return {
        **data,
        "id": f"check-{place}",
        "title": check.title,
        "failed": failed,
        "location": location,
        "summary": f"{count}, {result}",
    }


# --- a matrix -------------------------------------------------------------------------------------------------------


def _matrix(data: Data) -> Data:
    cells = [{**cell, "id": f"cell-{i}"} for i, cell in enumerate(data["cells"])]
    problems = _problems(cells)
    for cell in cells:
        cell.update(_shown(cell), groups=[p for p in problems if cell["id"] in p["cells"]])
    cells_by_key = {(cell["strategy"], cell["runtime"], cell["dtype"]): cell for cell in cells}
    strategies, dtypes = (list(dict.fromkeys(cell[key] for cell in cells)) for key in ("strategy", "dtype"))
    ran = {cell["runtime"] for cell in cells if cell["verdict"] != "missing"}
    runtimes = [{**r, **_runtime(r["name"], cells)} for r in data["runtimes"]]
    here = [r for r in runtimes if r["name"] in ran]
    return {
        "passed": data["passed"],
        "summary": _summary(cells, len(strategies), len(runtimes), len(dtypes)),
        "unexplained": sum(not p["known"] for p in problems),
        "environment": data["environment"],
        "runtimes": runtimes,
        "here": here,
        "away": [r for r in runtimes if r["name"] not in ran],
        "tables": [
            (dtype, [(s, [cells_by_key.get((s, r["name"], dtype)) for r in here]) for s in strategies])
            for dtype in dtypes
        ],
        "worst": _worst(cells),
        "entries": sum(len(cell["worst"]) for cell in cells),
        "problems": problems,
    }


def _summary(cells: Sequence[Data], strategies: int, runtimes: int, dtypes: int) -> str:
    sizes = (
        _counted(strategies, "strategy", "strategies"),
        _counted(runtimes, "runtime"),
        _counted(dtypes, "dtype"),
    )
    counts = Counter(cell["verdict"] for cell in cells)
    same = sum(cell["verdict"] == "equal" and cell["same_bits"] for cell in cells)
    words = [f"{counts[key]:,} {word}" for key, word in _SAID]
    words[0] += f" ({same:,} of them in every bit)" if same else ""
    return f"{' × '.join(sizes)}, {_counted(len(cells), 'cell')}: {', '.join(words)}."


def _shown(cell: Data) -> dict[str, Any]:
    """Say what stands in a cell, and which class it has: that of its verdict, "known" where all of it is documented."""
    verdict = cell["verdict"]
    known = bool(cell["problems"]) and all(p["known"] for p in cell["problems"])
    share = "" if verdict in ("cannot", "missing") else "same bits" if cell["same_bits"] else number(cell["ratio"], 2)
    failed = dict.fromkeys(p["failed"] for p in cell["problems"] if p["kind"] == "differs")
    if set(failed) - {"error"}:
        share = ", ".join(failed)  # no number says how far NaN is from what stands there
    words = [verdict if verdict != "equal" else "", share, "(known)" if known else ""]
    counts = f"{_counted(cell['compared'], 'run')}, {_counted(cell['elements'], 'entry', 'entries')}"
    return {
        "text": " ".join(filter(None, words)),
        "look": "known" if known else verdict,
        "hint": f"{cell['strategy']} in {cell['runtime']}, {cell['dtype']}: {verdict}; {counts}, "
        f"ρ = {number(cell['ratio'])}",
    }


def _problems(cells: Sequence[Data]) -> list[dict[str, Any]]:
    """Put alike problems together, those that nothing documents first: alike are those that differ in numbers alone."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in cells:
        for p in cell["problems"]:
            alike = re.sub(r"\[[^\]]*\]|[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", p["detail"])
            key = (cell["runtime"], p["kind"], p["failed"], alike, p["known"])
            empty: dict[str, Any] = {"cells": {}, "dtypes": {}, "where": {}, "count": 0}
            group = groups.setdefault(key, {**p, "runtime": cell["runtime"], **empty})
            group["count"] += 1
            group["cells"][cell["id"]] = group["dtypes"][cell["dtype"]] = True  # in order, each once
            group["where"].setdefault((cell["strategy"], cell["dtype"], p["case"]), []).append(p["values"])
    ordered = sorted(groups.values(), key=lambda group: bool(group["known"]))
    return [{**group, "id": f"problem-{i + 1}", "label": f"P{i + 1}"} for i, group in enumerate(ordered)]


def _worst(cells: Sequence[Data]) -> list[dict[str, Any]]:
    entries = [{**entry, "cell": cell} for cell in cells for entry in cell["worst"]]
    return sorted(entries, key=lambda entry: -float(entry["ratio"]))[:TOP]


def _runtime(name: str, cells: Sequence[Data]) -> dict[str, Any]:
    """Sum a runtime's cells up, and draw how its entries share their tolerance."""
    own = [cell for cell in cells if cell["runtime"] == name]
    counts = [sum(bins) for bins in zip(*(cell["histogram"] for cell in own if cell["histogram"]), strict=True)]
    return {"cells": own, "chart": _chart(counts or [0] * len(BINS)), "entries": sum(counts)}


def _chart(counts: Sequence[int]) -> Data:
    """Lay bars out in a frame of 360 × 200 units: one a bin, as high as the logarithm of its count.

    The foot of the scale is 1/2, so that a single entry still has a bar.
    """
    left, right, head, foot = 30, 358, 34, 156
    decades = max(1, math.ceil(math.log10(max(*counts, 1))))
    unit = (foot - head) / (decades + math.log10(2))
    step = (right - left) / len(counts)

    def height(count: float) -> float:
        return unit * math.log10(2 * count) if count else 0.0

    labels = ["0", *(f"≤ {bound:g}" for bound in BINS[1:-1]), f"> {BINS[-2]:g}"]
    return {
        "ticks": [
            ("1" if n == 0 else f"10{str(n).translate(_RAISED)}", foot - height(10**n)) for n in range(decades + 1)
        ],
        "bars": [
            {
                "x": left + step * (i + 0.15),
                "middle": left + step * (i + 0.5),
                "y": foot - height(count),
                "width": 0.7 * step,
                "height": height(count),
                "label": label,
                "count": count,
                "short": f"{count:,}"
                if count < 1e5
                else f"{count / 1e3:.0f}k"
                if count < 1e6
                else f"{count / 1e6:.3g}M",
                "over": i == len(counts) - 1,
            }
            for i, (label, count) in enumerate(zip(labels, counts, strict=True))
        ],
        "said": "; ".join(f"share {label}: {count:,}" for label, count in zip(labels, counts, strict=True)),
        "left": left,
        "right": right,
        "foot": foot,
    }
