"""The command line: what it prints, what it writes, and its exit codes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fusion_onnx
from fusion_onnx.cli import app
from fusion_onnx.verification import backends

ROOT = Path(__file__).parent.parent
TARGET = """
import torch, fusion_onnx

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.merge = fusion_onnx.FusionLayer(fusion_onnx.create("low_rank_concatenation", dims=[4, 6], n=5))

    def forward(self, a, b):
        return self.merge(a, b)

def build(): return Net()
def other():
    net = Net()
    net.merge.w.data += 1
    return net
def pair(): return Net(), (torch.randn(2, 4), torch.randn(2, 6))
def fusion(): return fusion_onnx.create("kronecker_concatenation", dims=[4, 4])
def nothing(): return 42
def example_inputs():
    torch.manual_seed(1)
    return torch.randn(3, 4), torch.randn(3, 6)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(TARGET)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == code, result.output
    return result


def test_list_names_every_strategy():
    assert {row["name"] for row in json.loads(run("list", "--json").stdout)} == set(fusion_onnx.names())
    shown = run("list").stdout
    for name in fusion_onnx.names():
        assert name in shown


def test_export_verify_inspect_run(here):
    said = json.loads(run("export", "net.py:build", "-o", "net.onnx", "--json").stdout)
    assert said["verdict"]["passed"] is True
    assert said["bytes"] == Path("net.onnx").stat().st_size
    assert "passed" in run("verify", "net.py:build", "net.onnx").stdout
    found = json.loads(run("inspect", "net.onnx", "--json").stdout)
    assert [n["name"] for n in found["fusions"]] == ["merge"]
    assert "MatMul" in found["fusions"][0]["body"]
    assert found["configs"]["merge.fusion"]["function_class"] == "low_rank_concatenation"
    assert "MatMul (" in run("inspect", "net.onnx", "--bodies").stdout
    np.savez("in.npz", a=np.ones((2, 4), np.float32), b=np.ones((2, 6), np.float32))
    said = json.loads(run("run", "net.onnx", "--inputs", "in.npz", "-o", "out.npz", "--json").stdout)
    assert said["outputs"] == [{"name": "y", "dtype": "float32", "shape": [2, 5]}]
    from fusion_onnx.cli.module import load_module

    net, _ = load_module("net.py:build")
    expected = net(torch.ones(2, 4), torch.ones(2, 6)).detach().numpy()
    np.testing.assert_allclose(np.load("out.npz")["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_model_of_other_weights_fails_the_verdict_with_code_1(here):
    run("export", "net.py:build", "-o", "net.onnx")
    assert "FAILED" in run("verify", "net.py:other", "net.onnx", code=1).stdout
    assert json.loads(run("verify", "net.py:other", "net.onnx", "--json", code=1).stdout)["passed"] is False


def test_an_export_that_differs_has_code_1_and_leaves_nothing(here, monkeypatch):
    cls = fusion_onnx.get("low_rank_concatenation")
    monkeypatch.setattr(cls, "decompose", lambda self, op, xs, w: op.MatMul(xs[0], op.constant(np.ones((4, 5)))))
    run("export", "net.py:build", "-o", "net.onnx", code=1)
    assert not Path("net.onnx").exists()


def test_targets(here):
    run("export", "net.py:pair", "-o", "0.onnx")
    (here / "bare.py").write_text(TARGET.partition("def example_inputs")[0])
    run("export", "bare.py:fusion", "-o", "1.onnx")
    (here / "package").mkdir()
    (here / "package" / "__init__.py").write_text("")
    (here / "package" / "inner.py").write_text(TARGET)
    run("export", "package.inner:build", "-o", "2.onnx", "--inline", "all", "--static", "--opset", "20")
    header = fusion_onnx.runtime.read_header("2.onnx")
    assert header.opset_imports == {"": 20}
    assert header.inputs[0].shape == (3, 4)


BAD = {
    ("export", "net.py:nope", "-o", "x.onnx"): "has no 'nope'",
    ("export", "net.py", "-o", "x.onnx"): "path/to/file.py:callable",
    ("export", "absent.py:build", "-o", "x.onnx"): "no file",
    ("export", "absent.module:build", "-o", "x.onnx"): "no module",
    ("export", "net.py:nothing", "-o", "x.onnx"): "not a torch.nn.Module",
    ("export", "net.py:build", "-o", "absent/x.onnx"): "does not exist",
    ("export", "net.py:build", "-o", "net.py"): "--overwrite",
    ("export", "net.py:build", "-o", "x.onnx", "--opset", "7"): "18",
    ("export", "net.py:build"): "--output",
    ("verify", "net.py:build", "absent.onnx"): "absent.onnx",
    ("inspect", "net.py"): "not an ONNX",
    ("inspect", "absent.onnx"): "absent.onnx",
    ("run", "net.py", "--inputs", "in.npz", "-o", "o.npz"): "not an ONNX",
    ("run", "net.onnx", "--inputs", "absent.npz", "-o", "o.npz"): "absent.npz",
    ("frobnicate",): "frobnicate",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_requests_have_code_2_say_why_and_write_nothing(here, arguments):
    if "net.onnx" in arguments:
        run("export", "net.py:build", "-o", "net.onnx")
    before = sorted(p.name for p in here.iterdir() if p.name != "__pycache__")
    result = run(*arguments, code=2)
    assert re.sub(r"\s+", " ", BAD[arguments]) in re.sub(r"[\s│]+", " ", result.stderr)
    assert sorted(p.name for p in here.iterdir() if p.name != "__pycache__") == before
    assert "Traceback" not in result.output


def test_inputs_that_do_not_fit_the_model(here):
    run("export", "net.py:build", "-o", "net.onnx")
    np.savez("in.npz", a=np.ones((2, 4), np.float32), c=np.ones((2, 6), np.float32))
    assert "c" in run("run", "net.onnx", "-i", "in.npz", "-o", "out.npz", code=2).stderr
    assert not Path("out.npz").exists()


def test_verify_with_the_battery_locates_and_writes_a_page(here):
    run("export", "net.py:build", "-o", "net.onnx", "--no-verify")
    said = json.loads(run("verify", "net.py:build", "net.onnx", "--battery", "--locate", "--json").stdout)
    assert said["passed"] is True
    assert said["location"] is None
    assert {"huge", "subnormal", "NaN in a", "Inf - Inf", "Fortran order"} <= {f["case"] for f in said["findings"]}
    wrong = run("verify", "net.py:other", "net.onnx", "--locate", "--html", "page.html", code=1)
    assert "where it starts: weights at node 'merge' of the fusion 'merge' (low_rank_concatenation)" in wrong.stdout
    assert "low_rank_concatenation" in Path("page.html").read_text(encoding="utf-8")
    said = json.loads(run("verify", "net.py:other", "net.onnx", "--locate", "--json", code=1).stdout)
    assert (said["location"]["fault"], said["location"]["node"]) == ("weights", "merge")
    assert "nowhere" in run("verify", "net.py:build", "net.onnx", "--html", "nowhere/page.html", code=2).stderr


def test_matrix_prints_writes_and_fails(here):
    shown = run("matrix", "max", "-r", "onnxruntime_cpu", "-r", "onnx_reference", "-o", "m.json", "--html", "m.html")
    assert "same bits" in shown.stdout
    said = json.loads(Path("m.json").read_text(encoding="utf-8"))
    assert [(c["strategy"], c["runtime"], c["verdict"]) for c in said["cells"]] == [
        ("max", "onnxruntime_cpu", "equal"),
        ("max", "onnx_reference", "equal"),
    ]
    assert "onnx_reference" in Path("m.html").read_text(encoding="utf-8")
    assert "tracts" in run("matrix", "max", "-r", "tracts", code=2).stderr
    assert "nowhere" in run("matrix", "max", "--known", "nowhere", code=2).stderr
    assert "maxi" in run("matrix", "maxi", "-r", "onnxruntime_cpu", code=2).stderr


def test_matrix_says_what_is_documented(here):
    if backends.get("tract").missing():
        pytest.skip(backends.get("tract").missing())
    run("matrix", "max", "-r", "tract", code=1)
    said = run("matrix", "max", "-r", "tract", "--known", ROOT / "docs" / "differences").stdout
    assert "tract-nan-in-minimum-and-maximum" in said


def test_overwrite(here):
    run("export", "net.py:build", "-o", "net.onnx")
    run("export", "net.py:build", "-o", "net.onnx", code=2)
    run("export", "net.py:build", "-o", "net.onnx", "--overwrite", "--no-verify")


def test_cuda_where_there_is_none(here):
    status = next((s for s in fusion_onnx.runtime.diagnose() if s.alias == "cuda"), None)
    if status is not None and status.starts:
        pytest.skip("CUDA starts here")
    run("export", "net.py:build", "-o", "net.onnx")
    assert "CUDA" in run("verify", "net.py:build", "net.onnx", "-p", "cuda", code=2).stderr


def test_doctor_says_what_starts():
    said = json.loads(run("doctor", "--json").stdout)
    cpu = next(p for p in said["providers"] if p["alias"] == "cpu")
    assert cpu["starts"] is True
    assert said["versions"]["numpy"] == np.__version__
    assert "CPU" in run("doctor").stdout


def test_every_command_helps_with_an_example():
    commands = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert len({*commands}) == len(commands) >= 10
    for command in commands:
        text = re.sub(r"\s+", " ", run(command, "--help").stdout)
        assert f"Example: fusion-onnx {command}" in text
        assert "--json" in text
    assert fusion_onnx.__version__ in run("--version").stdout


def test_what_a_target_raises_or_prints(here):
    (here / "odd.py").write_text(
        "import torch, fusion_onnx\n"
        "def raises(): raise KeyError('no such key')\n"
        "def leaves(): raise SystemExit(5)\n"
        "def wants(x): return x\n"
        "def prints():\n"
        "    print('hello')\n"
        "    return fusion_onnx.create('sum', dims=[4, 4])\n"
    )
    (here / "broken.py").write_text("def build(:\n")
    for target in ("odd.py:raises", "odd.py:leaves", "odd.py:wants", "broken.py:build"):
        assert "failed" in run("export", target, "-o", "x.onnx", code=2).stderr
    assert json.loads(run("export", "odd.py:prints", "-o", "x.onnx", "--json").stdout)["verdict"]["passed"]


def test_files_of_arrays_that_are_none(here):
    run("export", "net.py:build", "-o", "net.onnx")
    np.save("one.npy", np.ones(3))
    Path("empty.npz").write_bytes(b"")
    Path("junk.npz").write_text("junk")
    np.savez("whole.npz", a=np.ones((2, 4), np.float32))
    Path("cut.npz").write_bytes(Path("whole.npz").read_bytes()[:-30])
    for name in ("one.npy", "empty.npz", "junk.npz", "cut.npz"):
        assert name in run("run", "net.onnx", "-i", name, "-o", "out.npz", code=2).stderr
    assert not Path("out.npz").exists()


def test_outputs_of_any_name_are_written(here):
    fusion = fusion_onnx.create("sum", dims=[4, 4])
    fusion_onnx.export(fusion, ([torch.ones(2, 4), torch.zeros(2, 4)],), "m.onnx", output_names=["file"])
    np.savez("in.npz", x1=np.ones((2, 4), np.float32), x2=np.ones((2, 4), np.float32))
    run("run", "m.onnx", "-i", "in.npz", "-o", "out.npz")
    assert np.load("out.npz")["file"].shape == (2, 4)


def test_deploy_writes_for_a_target_and_names_those_there_are(here):
    pytest.importorskip("openvino")
    run("export", "net.py:build", "-o", "net.onnx")
    assert run("deploy", "openvino", "net.onnx", "-o", "net.xml").stdout.split() == [
        "wrote",
        "net.xml",
        "wrote",
        "net.bin",
    ]
    assert "exists" in run("deploy", "openvino", "net.onnx", "-o", "net.xml", code=2).stderr
    said = json.loads(run("deploy", "openvino", "net.onnx", "-o", "net.xml", "--overwrite", "--json").stdout)
    assert said == {"target": "openvino", "files": ["net.xml", "net.bin"]}
    assert "Did you mean 'openvino'?" in run("deploy", "openvin", "net.onnx", "-o", "x.xml", code=2).stderr
