"""The benchmark runs, checks what it times, and says what cannot run; no test looks at a time."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import fusion_onnx
from benchmarks import gpu, networks
from fusion_onnx import Fusion, FusionLayer, create
from fusion_onnx.bench import contenders, plot, report, rows
from fusion_onnx.cli import app


@pytest.mark.parametrize("name", ["median", "learned_weighted_sum", "low_rank_concatenation"])
def test_a_row_has_every_contender_or_the_reason(name):
    scenario = rows.Scenario("small", 3, 5, 8)
    fusion = create(name, dims=[8] * 3, **({"n": 4} if "concatenation" in name else {}))
    names = ["eager", "plain_export", "ours", "ours_raw"]
    found = rows.row(name, fusion, scenario, names, 0.01)
    assert found.failed == {}
    assert set(found.interleaved) == set(names)
    assert all(seconds > 0 for seconds in (*found.interleaved.values(), found.copy, found.rate))
    assert found.floor == max(found.copy, found.operations / found.rate)
    wanted = {"median": 4 * 5 * 8, "learned_weighted_sum": 5 * 5 * 8, "low_rank_concatenation": 2 * 5 * (24 + 4)}
    assert found.operations >= wanted[name] * getattr(fusion, "r", 1)
    text = report.table([found])
    assert "### small" in text
    assert f"| {name} |" in text


def test_a_contender_that_computes_something_else_is_not_result(monkeypatch):
    def wrong(fusion, xs, w):
        return lambda: sum(xs) * 1.01

    monkeypatch.setitem(contenders.CONTENDERS, "wrong", wrong)
    found = rows.row("sum", create("sum", dims=[8, 8]), rows.Scenario("small", 2, 5, 8), ["wrong", "eager"], 0.01)
    assert "off by" in found.failed["wrong"]
    assert set(found.interleaved) == {"eager"}


class Halved(Fusion):
    """Entrywise, with a formula that the tracer does not know, or with none."""

    equal_dims = True

    def calculate_n(self, dims=None):
        return self.dims[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w, *buffers):
        return xs[0] / 2

    def decompose(self, op, xs, w, *buffers):
        return op.Div(xs[0], op.constant(2))


class UntracedHalved(Halved):
    def reference(self, xs, w):
        return xs[0].astype(xs[0].dtype) / 2


@pytest.mark.parametrize(
    ("cls", "reason"), [(Halved, "gives no reference"), (UntracedHalved, "its reference cannot be traced: ")]
)
def test_a_strategy_without_a_plain_export_says_why_and_is_not_measured_as_another(cls, reason):
    scenario = rows.Scenario("small", 2, 5, 8)
    result = rows.row("halved", cls(dims=[8, 8]), scenario, ["eager", "plain_export", "ours"], 0.01, files=True)
    assert set(result.interleaved) == {"eager", "ours"}
    assert result.failed["plain_export"].startswith("Absent: ")
    assert reason in result.failed["plain_export"]
    assert result.files["plain_export"] == {}
    assert "–" in report.table([result])


def test_eager_is_held_to_the_reference():
    mean = fusion_onnx.get("mean")

    class Off(mean):
        reference, decompose = mean.reference, mean.decompose

        def fuse(self, xs, w, *buffers):
            return (xs[0] + xs[1]) / 1.99

    result = rows.row("mean", Off(dims=[8, 8]), rows.Scenario("small", 2, 5, 8), ["eager", "plain_export"], 0.01)
    assert set(result.interleaved) == {"plain_export"}
    assert "off by" in result.failed["eager"]


@pytest.mark.parametrize("name", ["median", "l2_norm", "weighted_sum", "random_matrix_adaptation"])
def test_the_plain_export_is_what_a_user_writes(name):
    cls = fusion_onnx.get(name)
    fusion = cls.cases[0].create(cls)
    xs = [torch.randn(5, d) for d in fusion.dims]
    length = fusion.calculate_l()
    model = onnx.load_model_from_string(
        contenders.plain_export_bytes(fusion, xs, torch.randn(length) if length else None)
    )
    body = [node.op_type for node in model.graph.node if node.op_type != "Unsqueeze"]
    assert body[0] == "Concat"
    assert body[-1] == {"median": "Where", "l2_norm": "ReduceL2", "weighted_sum": "ReduceSum"}.get(name, "MatMul")
    assert len(body) <= 3 or name == "median"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


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
    for name in ("fusions.png", "fusions_detail.png"):
        assert (tmp_path / "found" / name).read_bytes().startswith(b"\x89PNG")


def test_unknown_names_are_refused():
    for wrong in (["--contender", "nobody"], ["--scenario", "nowhere"], ["nothing"]):
        said = CliRunner().invoke(app, ["bench", *wrong])
        assert said.exit_code == 2


def test_growth_is_drawn(tmp_path):
    plot.growth(
        {"k": {"sum": [(2, 1e-3), (4, 2e-3)]}, "rows": {"sum": [(1, 1e-6), (10, 2e-6)]}}, tmp_path / "growth.png"
    )
    assert (tmp_path / "growth.png").stat().st_size > 1000


def made_row(strategy="max", scenario="latency, batch 1", **interleaved):
    return rows.Row(strategy, scenario, 1, 1, 1e-6, 1e9, 1e-6, interleaved)


@pytest.mark.parametrize(
    "found",
    [
        [made_row(ours=1e-6)],
        [made_row(ours=1e-6, eager=3e-4), made_row("min", ours=2e-6, compiled=1e-6)],
        [made_row(eager=3e-4), made_row(scenario="my own", ours=2e-6, eager=1e-6)],
        [made_row(eager=3e-4)],
        [made_row()],
    ],
    ids=["ours alone", "contenders missing", "a scenario without ours", "none of ours", "nothing timed"],
)
def test_the_summary_is_drawn_of_whatever_there_is(found, tmp_path):
    plot.summary(found, tmp_path / "summary.png")
    assert (tmp_path / "summary.png").exists() == any(row.interleaved for row in found)


def test_networks_are_measured_and_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["networks", "--quick", "--output", str(tmp_path)])
    networks.main()
    found = json.loads((tmp_path / "networks.json").read_text(encoding="utf-8"))
    assert [(row["network"], row["batch"]) for row in found["rows"]] == [
        ("digits, weighted sum", 1),
        ("digits, low rank", 1),
    ]
    for row in found["rows"]:
        assert set(row["seconds"]) == set(row["beside"]) == set(networks.CONTENDERS) - {"compiled"}
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row["beside"]["run"] == 1
    assert (tmp_path / "networks.md").read_text(encoding="utf-8") in capsys.readouterr().out
    assert (tmp_path / "networks.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_that_computes_something_else_is_not_timed():
    right = [torch.ones(3, dtype=torch.float64)]
    networks.check({"one": lambda: [np.ones(3, np.float32)]}, right)
    with pytest.raises(ArithmeticError, match=r"two is off by 1\.0e-03"):
        networks.check({"two": lambda: [np.full(3, 1.001, np.float32)]}, right)


@pytest.mark.parametrize("build", networks.NETWORKS)
def test_the_plain_network_computes_the_same(build):
    _, network, example = build()
    xs, plain = example(3), networks.plain(network.eval())
    assert not any(isinstance(module, FusionLayer) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(*xs), network(*xs), rtol=1e-4, atol=1e-4)


def test_no_formula_is_guessed(monkeypatch):
    network = torch.nn.Sequential(FusionLayer(create("mean", dims=[4, 4])))
    monkeypatch.delattr(fusion_onnx.get("mean"), "reference")
    with pytest.raises(contenders.Absent, match="mean gives no reference"):
        networks.plain(network)


@pytest.mark.parametrize("name", ["median", "learned_weighted_sum", "low_rank_concatenation"])
def test_a_row_of_a_card_has_every_form(name):
    fusion = create(name, dims=[8] * 3)
    found = gpu.row(name, fusion, [*torch.randn(3, 5, 8)], "cpu", 0.01)
    assert found["failed"] == {}
    assert found["chosen"] in found["rule"]
    assert set(found["microseconds"]) == {*found["rule"], "copy"}


def test_without_a_card_it_says_so_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(gpu, "why_no_card", lambda: "no driver")
    monkeypatch.setattr(gpu, "tested", lambda *arguments: pytest.fail("there is no card"))
    assert gpu.main() == 1
    assert capsys.readouterr() == ("", "No card to test on: no driver.\n")


def test_tests_come_first_and_the_file_has_the_name_of_the_card(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    monkeypatch.setattr(gpu, "why_no_card", lambda: "")
    monkeypatch.setattr(gpu, "tested", lambda *arguments: asked.append(arguments) or len(asked) - 1)
    monkeypatch.setattr(gpu, "row", lambda name, *rest: asked.append(name) or {"microseconds": {}, "chosen": "f"})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    randn = torch.randn
    monkeypatch.setattr(
        torch, "randn", lambda *sizes, device=None, **more: randn(1) if device else randn(*sizes, **more)
    )
    assert gpu.main() == 1
    assert asked[:2] == [("tests/test_gpu.py",), ()]
    (path,) = tmp_path.iterdir()
    assert path.name == "gpu_nvidia_h100_80gb_hbm3.json"
    assert len(json.loads(path.read_text())["rows"]) == len(asked) - 2
