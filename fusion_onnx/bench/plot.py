"""Plots of what was measured, with matplotlib (`pip install 'fusion-onnx[bench]'`)."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_onnx.bench.rows import SCENARIOS, Row, machine, short
from fusion_onnx.files import written

_NAMES = {
    "ours": "fusion-onnx",
    "ours_openvino": "fusion-onnx, OpenVINO provider",
    "ours_cuda": "fusion-onnx, CUDA",
    "compiled": "torch.compile",
    "openvino": "OpenVINO",
    "eager": "eager PyTorch",
    "plain_export": "plain ONNX export",
    "tinybig": "tinyBIG",
    "compiled_cuda": "torch.compile, CUDA",
    "eager_cuda": "eager PyTorch, CUDA",
}
_OURS, _TOO, _OTHERS, _TEXT = "#1f5fa8", "#8fb8e3", "#c3c9d0", "#222222"

_COLOURS = {
    "eager": "#9aa5b1",
    "tinybig": "#8a6fb0",
    "compiled": "#c48a3f",
    "plain_export": "#b5484b",
    "openvino": "#6d8f4e",
    "ours": "#1f5fa8",
    "ours_openvino": "#4f9bd9",
    "ours_cuda": "#11365e",
    "eager_cuda": "#5d6b7a",
    "compiled_cuda": "#8a5a1f",
}


@dataclass(frozen=True)
class Panel:
    """One comparison: on what, in words; each contender's times as multiples of ours; and our own time in words."""

    title: str
    detail: str
    multiples: Mapping[str, Sequence[float]]
    ours: str


def bars(
    panels: Sequence[Panel],
    names: Mapping[str, str],
    ours: tuple[str, ...],
    title: str,
    notes: str,
    path: Path,
    longest: float = 10.0,
) -> None:
    """Draw how many times as long as ours each contender takes: a bar for the geometric mean, a dot for each time.

    names: the contenders in the order of the bars, and how to call them; those that no panel has are left out. ours:
    the one that the others are compared with, and those that are ours too. longest: of a bar, as a multiple; what is
    longer is cut, so that small differences remain visible.
    """
    from matplotlib.figure import Figure

    contenders = [name for name in names if any(panel.multiples.get(name) for panel in panels)]
    figure = Figure(figsize=(max(12.0, 2.2 * len(panels) + 1.5), 2.1 + 0.62 * len(contenders)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        axis.set_title(panel.title, fontsize=10.5, fontweight="bold", loc="left", color=_TEXT, pad=38)
        axis.text(
            0,
            1.02,
            panel.detail,
            fontsize=10.5,
            color="#555555",
            transform=axis.transAxes,
            va="bottom",
            linespacing=1.3,
        )
        for place, name in enumerate(contenders):
            colour = _OURS if name == ours[0] else _TOO if name in ours else _OTHERS
            _bar(axis, place, panel.multiples.get(name) or (), colour, panel.ours if name == ours[0] else "", longest)
        axis.axvline(1, color=_OURS, linewidth=1, zorder=1)
        axis.set_xlim(0, longest * 1.02)
        axis.set_ylim(len(contenders) - 0.4, -0.6)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        if i == 0:
            axis.set_yticks(range(len(contenders)), [names[name] for name in contenders], fontsize=12.5, color=_TEXT)
            for name, label in zip(contenders, axis.get_yticklabels(), strict=True):
                if name in ours:
                    label.set(color=_OURS, fontweight="bold")
    figure.suptitle(title, fontsize=16, fontweight="bold", x=0.01, ha="left", color=_TEXT)
    figure.supxlabel(notes, fontsize=10.5, x=0.01, ha="left", color="#555555")
    with written(path) as file:
        figure.savefig(file, format="png", dpi=100, facecolor="white")


def _bar(axis: Any, place: int, multiples: Sequence[float], colour: str, ours: str, longest: float) -> None:
    """Draw one bar, its dots, and its number; `ours` stands in place of the number 1."""
    if not multiples:
        axis.text(0.15, place, "–", va="center", fontsize=12, color="#888888")
        return
    mean, unit = statistics.geometric_mean(multiples), longest / 10
    axis.barh(place, min(mean, longest), height=0.62, color=colour, zorder=2)
    x = max(min(mean, longest), 1) + 0.25 * unit
    if ours:
        axis.text(x, place, ours, va="center", fontsize=11.5, color=colour, fontweight="bold")
        return
    dots = [multiple for multiple in multiples if multiple < longest]
    if len(multiples) > 1:
        axis.scatter(dots, [place + 0.24] * len(dots), s=7, color="#6b7480", alpha=0.45, linewidth=0, zorder=3)
    digits = 2 if mean < 1.995 else 1 if mean < 9.95 else 0
    outside = mean < 0.75 * longest
    where = (x, "left") if outside else (0.75 * longest, "right")
    axis.text(where[0], place - 0.06, f"{mean:,.{digits}f} ×", va="center", ha=where[1], fontsize=12, zorder=5)
    for at in (8.0, 8.4) if mean > longest else ():  # cut
        strokes = [(at - 0.12) * unit, (at + 0.12) * unit]
        axis.plot(strokes, [place + 0.4, place - 0.4], color="white", zorder=4)


def summary(rows: Sequence[Row], path: Path) -> None:
    """Draw how many times as long as fusion-onnx the others take, a panel for each scenario."""
    order = [name for name in _NAMES if any(name in row.interleaved for row in rows)]
    ours = next((name for name in ("ours", "ours_cuda", "ours_openvino") if name in order), order[0] if order else "")
    panels, counts = [], []
    for scenario in dict.fromkeys(row.scenario for row in rows):
        here = [row for row in rows if row.scenario == scenario and ours in row.interleaved]
        if not here:
            continue
        multiples = {
            name: [row.interleaved[name] / row.interleaved[ours] for row in here if name in row.interleaved]
            for name in order
        }
        time = statistics.geometric_mean([row.interleaved[ours] for row in here])
        title = scenario[0].upper() + scenario[1:]
        panels.append(Panel(title, _in_words(scenario, len(here)), multiples, short(time, 3)))
        counts.append(len(here))
    if not panels:
        return
    dots = " Dots: single strategies." if max(counts) > 1 else ""
    means = "geometric mean over the strategies" if max(counts) > 1 else "one strategy"
    facts = machine()
    bars(
        panels,
        {name: _NAMES[name] for name in order},
        (ours,),
        f"How many times as long as {_NAMES[ours]} others take to fuse the same tensors",
        f"Shorter is faster. Bars: {means}; cut beyond 10 ×.{dots} {facts['threads']} cores, {facts['cpu']}.",
        path,
    )


def _in_words(scenario: str, strategies: int) -> str:
    match = next((s for s in SCENARIOS if s.name == scenario), None)
    size = f"{match.k} inputs of {match.rows} × {match.width}\n" if match else ""
    return f"{size}{strategies} strateg{'y' if strategies == 1 else 'ies'}"


def ratios(rows: Sequence[Row], path: Path) -> None:
    """Draw each contender's time as a multiple of the floor, a panel for each scenario, on a logarithmic axis."""
    from matplotlib.figure import Figure

    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    most = max(sum(row.scenario == scenario for row in rows) for scenario in scenarios)
    lines = -(-len(scenarios) // 2)
    figure = Figure(figsize=(14, lines * (1.2 + 0.22 * most)), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False).flatten()
    for panel in panels[len(scenarios) :]:
        panel.set_axis_off()
    panels = panels[: len(scenarios)]
    for panel, scenario in zip(panels, scenarios, strict=True):
        here = [row for row in rows if row.scenario == scenario]
        for contender, colour in _COLOURS.items():
            timed = [(i, row) for i, row in enumerate(here) if contender in row.interleaved]
            places = [(row.interleaved[contender] / row.floor, i) for i, row in timed]
            if places:
                size = 46 if contender.startswith("ours") else 26
                label = _NAMES[contender]
                panel.scatter(*zip(*places, strict=True), s=size, color=colour, label=label, zorder=3)
        panel.set_yticks(range(len(here)), [row.strategy.replace("_", " ") for row in here], fontsize=8)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.axvline(1, color="#444444", linewidth=0.8)
        panel.grid(axis="x", which="both", color="#e6e6e6", linewidth=0.5)
        panel.set_title(scenario, fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "time, as a multiple of the floor: a copy of the same bytes, or the operations (interleaved, medians)",
        fontsize=10,
    )
    handles = {label: mark for panel in panels for mark, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    with written(path) as file:
        figure.savefig(file, format="png", dpi=120)


def growth(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path) -> None:
    """Draw time against size: {panel: {strategy: [(size, seconds), ...]}}, with a line of slope 1 beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(curves), 4), layout="constrained")
    for panel, (name, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for strategy, points in lines.items():
            sizes, seconds = zip(*points, strict=True)
            panel.plot(sizes, [s * 1e3 for s in seconds], marker="o", markersize=3, linewidth=1, label=strategy)
        longest = max((points for points in lines.values()), key=lambda points: points[-1][1])
        (size, seconds_at), first = longest[-1], longest[0][0]
        panel.plot(
            [first, size], [1.5e3 * seconds_at * first / size, 1.5e3 * seconds_at], color="#bbbbbb", linestyle="--"
        )
        panel.set_xscale("log")
        panel.set_yscale("log")
        if size < 100:
            panel.set_xticks([s for s, _ in longest], [str(s) for s, _ in longest])
            panel.minorticks_off()
        panel.set_xlabel(name)
        panel.set_ylabel("ms a call (dashed: slope 1)")
        panel.grid(which="major", color="#e6e6e6", linewidth=0.5)
        panel.legend(fontsize=8, frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    with written(path) as file:
        figure.savefig(file, format="png", dpi=120)
