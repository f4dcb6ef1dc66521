"""What callers meet when they err: typed errors, in words that say what to do; Ctrl-C; a machine without PyTorch."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
import zipfile

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import fusion_onnx
from fusion_exporters import ExportError, Tuning
from fusion_onnx import FusionError, InputError, Session, SessionError, create, export
from fusion_onnx.cli import app

ENTRY = {"fusion": "sum", "function": "sum_k2", "provider": "cpu", "rows": 3, "width": 4, "dtype": "float32"}
ENTRY |= {"form": "chain", "seconds": {}}
BROKEN_TUNINGS = {
    "rows as text": json.dumps({"format": "FORMAT", "machine": "m", "fusions": [{**ENTRY, "rows": "2"}]}),
    "no rows": json.dumps({"format": "FORMAT", "machine": "m", "fusions": [{**ENTRY, "rows": None}]}),
    "a list of forms": json.dumps({"format": "FORMAT", "machine": "m", "fusions": [{**ENTRY, "form": ["chain"]}]}),
    "brackets": "[" * 200_000,
    "rows beyond count": json.dumps({"format": "FORMAT", "machine": "m", "fusions": [{**ENTRY, "rows": 10**400}]}),
    "a number of many digits": '{"format": ' + "9" * 5000 + "}",
    "no object": "null",
}


@pytest.mark.parametrize("what", BROKEN_TUNINGS)
def test_tuning_files_that_are_malformed(tmp_path, what):
    from fusion_exporters.forms.tuning_file import FORMAT

    path = tmp_path / "forms.json"
    Tuning("m", []).write(path)
    Tuning.read(path)
    path.write_text(BROKEN_TUNINGS[what].replace('"FORMAT"', json.dumps(FORMAT)))
    with pytest.raises(ExportError, match=r"is no file of fusion-onnx tune"):
        Tuning.read(path)


def linear(inputs):
    parameters = {"in_features": inputs, "out_features": 2}
    return {"preprocess_function_configs": {"function_class": "linear", "function_parameters": parameters}}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sum", {"dims": [4, 4], **linear("a")}),
        ("sum", {"dims": [4, 4], **linear(-1)}),
        ("random_matrix_adaptation", {"dims": [4, 4], "n": 2, "r": 2, "device": "nowhere"}),
    ],
)
def test_configs_that_cannot_be_built_are_fusion_errors(name, parameters):
    with pytest.raises(FusionError):
        fusion_onnx.from_config({"function_class": name, "function_parameters": parameters})


def test_a_config_may_be_any_mapping_and_its_numbers_end():
    config = types.MappingProxyType(
        {"function_class": "sum", "function_parameters": types.MappingProxyType({"dims": (4, 4)})}
    )
    assert fusion_onnx.from_config(config).get_dims() == [4, 4]
    with pytest.raises(FusionError, match="not JSON"):
        fusion_onnx.from_config('{"function_class": ' + "9" * 5000 + "}")


def brackets():
    header = b"(" * 9000
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def huge():
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 64), }\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize("content", [brackets, huge, lambda: b"no array"])
def test_arrays_that_are_malformed(tmp_path, content):
    export(create("sum", dims=[4, 4]), ([torch.ones(2, 4), torch.ones(2, 4)],), tmp_path / "sum.onnx")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x1.npy", content())
    done = CliRunner().invoke(app, ["run", str(tmp_path / "sum.onnx"), "-i", str(tmp_path / "x.npz")])
    assert (done.exit_code, done.exception.__class__) == (2, SystemExit), done.output


def test_run_shows_what_it_does_not_write(tmp_path):
    export(create("sum", dims=[2, 2]), ([torch.ones(2, 2), torch.ones(2, 2)],), tmp_path / "sum.onnx")
    np.savez(tmp_path / "x.npz", x1=np.ones((1, 2), np.float32), x2=np.full((1, 2), 2, np.float32))
    call = ["run", str(tmp_path / "sum.onnx"), "-i", str(tmp_path / "x.npz")]
    assert "[[3. 3.]]" in CliRunner().invoke(app, call).output
    shown = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert (shown["path"], shown["outputs"][0]["values"]) == (None, [[3.0, 3.0]])


def test_habits_from_elsewhere(tmp_path):
    session = Session(export(create("sum", dims=[2, 2]), ([torch.ones(2, 2), torch.ones(2, 2)],)))
    x = np.ones((1, 2), np.float32)
    assert session.run(None, {"x1": x, "x2": x})[0].tolist() == [[2.0, 2.0]]
    with pytest.raises(InputError, match=r"run gives all outputs: run\(mapping\)"):
        session.run(["y"], {"x1": x, "x2": x})
    with pytest.raises(SessionError, match="did you mean 'cuda'"):
        Session(export(create("sum"), ([torch.ones(2, 2), torch.ones(2, 2)],)), providers="gpu")


def test_a_refused_kernel_is_silent(capfd):
    """The kernel of k = 2 refuses shapes that no kernel is for, and ONNX Runtime's operators take over."""
    model = export(create("sum"), ([torch.ones(2, 3), torch.ones(2, 3)],)).model
    for value in model.graph.input:  # ranks are free: the file promises less than the fusion does
        value.type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = Session(model.SerializeToString(), "cpu")
    if not session.fused:
        pytest.skip("no kernels here")
    (y,) = session.run(np.ones((2, 3), np.float32), np.ones((1, 3), np.float32))
    assert (y.tolist(), session.fused) == ([[2.0] * 3] * 2, ())
    assert capfd.readouterr() == ("", "")


TARGET = """
    import torch, fusion_onnx

    def build(width=4, kind="mean"):
        if width < 1:
            raise LookupError("too narrow")
        net = torch.nn.Sequential(torch.nn.Linear(width, 3))
        return net, (torch.ones(2, width),)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left = torch.nn.Linear(3, 3)
            self.merge = fusion_onnx.FusionLayer(fusion_onnx.create("sum", dims=[3, 3]))

        def forward(self, a, b):
            return self.merge(self.left(a), b)

    def net():
        return Net(), (torch.ones(2, 5, 3), torch.ones(2, 5, 3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "target.py").write_text(textwrap.dedent(TARGET))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(*words):
    done = CliRunner().invoke(app, [*words])
    return done.exit_code, " ".join(done.output.split())


def test_a_target_takes_options_and_says_where_it_failed(folder):
    assert called("export", "target.py:build", "-o", "a.onnx", "--set", "width=6", "--set", "kind=text")[0] == 0
    assert onnx.load("a.onnx").graph.input[0].type.tensor_type.shape.dim[1].dim_value == 6
    code, words = called("export", "target.py:build", "-o", "b.onnx", "--set", "width=0")
    assert code == 2
    assert 'target.py:build failed at target.py:6, raise LookupError("too narrow"). LookupError: too narrow' in words
    assert called("export", "target.py:build", "-o", "b.onnx", "--set", "width")[0] == 2
    (folder / "ours.py").write_text(
        "import fusion_onnx\n\ndef build():\n    return fusion_onnx.create('sum', dims=[0])\n"
    )
    words = called("export", "ours.py:build", "-o", "b.onnx")[1]
    assert (
        "ours.py:build failed at ours.py:4, return fusion_onnx.create('sum', dims=[0])." in words
    )  # not in a file of ours
    assert not (folder / "b.onnx").exists()


def test_axes_names_and_weights_from_the_shell(folder):
    import target

    network = target.Net()
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, "net.pt")
    given = [
        "--dynamic",
        "a:0=batch,1=time",
        "--dynamic",
        "b:0=batch,1=time",
        "--input-names",
        "a,b",
        "--output-names",
        "z",
    ]
    code, words = called("export", "target.py:net", "-o", "net.onnx", *given, "--weights", "net.pt", "--external-data")
    assert code == 0, words
    assert "inputs: a: float32[batch, time, 3], b: float32[batch, time, 3]" in words
    assert "outputs: z: float32[batch, time, 3]" in words
    session = Session("net.onnx")
    x, y = torch.randn(3, 7, 3), torch.randn(3, 7, 3)
    torch.testing.assert_close(session.run(x, y)[0], network(x, y).detach())
    (folder / "bad.pt").write_bytes(b"no")
    for option, said in {
        ("--weights", "absent.pt"): "there is no file absent.pt",
        ("--weights", "bad.pt"): "no state_dict that can be read safely",
        ("--dynamic", "a=batch"): "--dynamic is such as x:0=batch,1=time",
    }.items():
        code, words = called("export", "target.py:net", "-o", "other.onnx", *option)
        assert code == 2
        assert said in words


def test_a_trace_is_shown_on_request(folder):
    done = CliRunner().invoke(app, ["--traceback", "export", "target.py:absent", "-o", "x.onnx"])
    assert isinstance(done.exception, ValueError)
    os.environ.pop("FUSION_ONNX_TRACE")


WITHOUT = """
    import sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "onnxscript"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
    sys.meta_path.insert(0, Missing())
    from typer.testing import CliRunner
    from fusion_onnx.cli import app
    for line in sys.argv[1:]:
        done = CliRunner().invoke(app, line.split())
        print(done.exit_code, " ".join(done.output.split()))
"""


def test_what_is_missing_comes_with_the_command_that_brings_it():
    lines = [
        "list",
        "export a.py:b -o c.onnx",
        "verify a.py:b c.onnx",
        "tune a.py:b -o d.json",
        "matrix mean",
        "bench mean",
    ]
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT), *lines]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    listed, *others = done.stdout.splitlines()
    assert listed.startswith("0 "), done.stdout + done.stderr
    assert "low_rank_concatenation" in listed
    assert len(others) == 5
    for line in others:
        assert line.startswith("2 "), line
        assert "pip install 'fusion-onnx[" in line, line


ENDLESS = """
    import sys, time, types
    from fusion_onnx import cli
    from fusion_onnx.cli.app import reported
    @cli.app.command()
    def endless():
        print("begun", flush=True)
        if sys.argv[-1] == "--deaf":
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    pass
        time.sleep(60)
    @cli.app.command()
    @reported
    def cut():
        print("begun", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ValueError("half a library")
    for command in cli.app.registered_commands:
        if command.callback.__name__ == "endless":
            command.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("command", [["endless"], ["endless", "--deaf"], ["cut"]])
def test_ctrl_c_ends_a_command_whatever_it_is_in(command):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ENDLESS), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_an_endless_file_ends_with_ctrl_c(tmp_path):
    """In ONNX Runtime's hands, where Python's own handler has no turn."""
    helper = onnx.helper
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("c", 9), ("v", 1))],
        [helper.make_tensor_value_info(n, t, []) for n, t in (("c2", 9), ("v2", 1))],
    )
    true = helper.make_tensor("true", 9, [], [True])
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", 1, [])],
        [helper.make_tensor_value_info("y", 1, [])],
        [true],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "endless.onnx"
    )
    np.savez(tmp_path / "x.npz", x=np.float32(1))
    command = [sys.executable, "-m", "fusion_onnx", "run", "endless.onnx", "-i", "x.npz", "-p", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
