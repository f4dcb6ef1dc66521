"""Plots of what was measured, with matplotlib (`pip install 'fusion-onnx[bench]'`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion_onnx.bench.rows import Row

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


def ratios(rows: Sequence[Row], path: Path) -> None:
    """Draw each contender's time as a multiple of the floor, a panel for each scenario, on a logarithmic axis."""
    from matplotlib.figure import Figure

    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    most = max(sum(row.scenario == scenario for row in rows) for scenario in scenarios)
    lines = -(-len(scenarios) // 2)
    figure = Figure(figsize=(14, lines * (1.2 + 0.22 * most)), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False).flatten()
    for unused in panels[len(scenarios) :]:
        unused.set_axis_off()
    panels = panels[: len(scenarios)]
    for panel, scenario in zip(panels, scenarios, strict=True):
        here = [row for row in rows if row.scenario == scenario]
        for contender, colour in _COLOURS.items():
            timed = [(i, row) for i, row in enumerate(here) if contender in row.together]
            places = [(row.together[contender] / row.floor, i) for i, row in timed]
            if places:
                size = 46 if contender.startswith("ours") else 26
                label = contender.replace("_", " ")
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
    figure.savefig(path, dpi=120)


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
    figure.savefig(path, dpi=120)
