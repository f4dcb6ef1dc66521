"""The benchmark runs, checks what it times, and says what cannot run; no test looks at a time."""

import json
import sys

import pytest

from benchmarks import contenders, fusions
from fusion_onnx import create


@pytest.mark.parametrize("name", ["median", "learned_weighted_sum", "low_rank_concatenation"])
def test_a_row_has_every_contender_or_the_reason(name):
    scenario = fusions.Scenario("small", 3, 5, 8)
    fusion = create(name, dims=[8] * 3, **({"n": 4} if "concatenation" in name else {}))
    names = ["eager", "plain_export", "ours", "ours_raw"]
    found = fusions.row(name, fusion, scenario, names, 0.01)
    assert found.failed == {}
    assert set(found.together) == set(names)
    assert all(seconds > 0 for seconds in (*found.together.values(), found.floor))
    text = fusions.table([found], names)
    assert "### small" in text
    assert f"| {name} |" in text


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch):
    def wrong(fusion, xs, w):
        return lambda: sum(xs) * 1.01

    monkeypatch.setitem(contenders.CONTENDERS, "wrong", wrong)
    found = fusions.row("sum", create("sum", dims=[8, 8]), fusions.Scenario("small", 2, 5, 8), ["wrong", "eager"], 0.01)
    assert "off by" in found.failed["wrong"]
    assert set(found.together) == {"eager"}


def test_written_as_json_and_markdown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fusions, "SCENARIOS", (fusions.Scenario("small", 2, 3, 4),))
    arguments = ["max", "--contender", "eager", "--seconds", "0.01", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fusions", *arguments])
    fusions.main()
    said = json.loads((tmp_path / "fusions.json").read_text(encoding="utf-8"))
    assert [row["strategy"] for row in said["rows"]] == ["max"]
    assert said["machine"]["threads"] >= 1
    assert (tmp_path / "fusions.md").read_text(encoding="utf-8").strip() in capsys.readouterr().out
