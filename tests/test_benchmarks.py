"""The benchmark runs, checks what it times, and says what cannot run; no test looks at a time."""

import json

import pytest
from typer.testing import CliRunner

from fusion_onnx import create
from fusion_onnx.bench import contenders, plot, rows
from fusion_onnx.cli import app


@pytest.mark.parametrize("name", ["median", "learned_weighted_sum", "low_rank_concatenation"])
def test_a_row_has_every_contender_or_the_reason(name):
    scenario = rows.Scenario("small", 3, 5, 8)
    fusion = create(name, dims=[8] * 3, **({"n": 4} if "concatenation" in name else {}))
    names = ["eager", "plain_export", "ours", "ours_raw"]
    found = rows.row(name, fusion, scenario, names, 0.01)
    assert found.failed == {}
    assert set(found.together) == set(names)
    assert all(seconds > 0 for seconds in (*found.together.values(), found.copy, found.rate))
    assert found.floor == max(found.copy, found.operations / found.rate)
    wanted = {"median": 4 * 5 * 8, "learned_weighted_sum": 5 * 5 * 8, "low_rank_concatenation": 2 * 5 * (24 + 4)}
    assert found.operations >= wanted[name] * getattr(fusion, "r", 1)
    text = rows.table([found])
    assert "### small" in text
    assert f"| {name} |" in text


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch):
    def wrong(fusion, xs, w):
        return lambda: sum(xs) * 1.01

    monkeypatch.setitem(contenders.CONTENDERS, "wrong", wrong)
    found = rows.row("sum", create("sum", dims=[8, 8]), rows.Scenario("small", 2, 5, 8), ["wrong", "eager"], 0.01)
    assert "off by" in found.failed["wrong"]
    assert set(found.together) == {"eager"}


def test_written_as_json_markdown_and_a_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SCENARIOS", (rows.Scenario("small", 2, 17, 4), rows.Scenario("tiny", 2, 1, 4)))
    command = ["bench", "max", "mean", "--contender", "eager", "--contender", "ours", "--seconds", "0.01"]
    said = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "found")])
    assert said.exit_code == 0, said.output
    found = json.loads((tmp_path / "found" / "fusions.json").read_text(encoding="utf-8"))
    assert [row["strategy"] for row in found["rows"]] == ["max", "mean"] * 2
    assert found["machine"]["threads"] >= 1
    files = found["rows"][0]["files"]
    assert set(files) == {"ours", "plain_export"}
    assert files["ours"]["bytes"] > 100
    assert found["rows"][2]["files"] == {}
    assert (tmp_path / "found" / "fusions.md").read_text(encoding="utf-8").strip() in said.stdout
    assert (tmp_path / "found" / "fusions.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_names_are_refused():
    for wrong in (["--contender", "nobody"], ["--scenario", "nowhere"], ["nothing"]):
        said = CliRunner().invoke(app, ["bench", *wrong])
        assert said.exit_code == 2


def test_growth_is_drawn(tmp_path):
    plot.growth(
        {"k": {"sum": [(2, 1e-3), (4, 2e-3)]}, "rows": {"sum": [(1, 1e-6), (10, 2e-6)]}}, tmp_path / "growth.png"
    )
    assert (tmp_path / "growth.png").stat().st_size > 1000
