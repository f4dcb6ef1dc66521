"""Deployment targets: what is written runs there and equals ONNX Runtime's output within the bound."""

import importlib
import sys

import numpy as np
import onnx
import pytest
import torch

import fusion_onnx
from fusion_exporters import ExportError, targets
from fusion_onnx import FusionLayer, Session, create, export
from fusion_onnx.contract import Arithmetic
from tests.test_export import drawn, flat

FIRST = [pytest.param(name, fusion_onnx.get(name).cases[0], id=name) for name in fusion_onnx.names()]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 64), torch.nn.Linear(5, 64)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[64, 64], n=5, r=2))
        self.median = create("median", dims=[64, 64])

    def forward(self, a, b):
        parts = [self.left(a), self.right(b)]
        return {"merged": self.merge(parts), "median": self.median(parts)}


def in_openvino(path, inputs):
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "CPU_DENORMALS_OPTIMIZATION": "NO"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    outputs = compiled([x.numpy() for x in inputs])
    return [outputs[i].copy() for i in range(len(compiled.outputs))]


def bound(fusion, xs, w=None):
    """Return how far two results may be apart, each within the strategy's bound of the exact one."""
    wide = [x.double() for x in xs]
    buffers = [b.to(xs[0].dtype).double() for b in fusion.buffers()]
    error = fusion.error_bound(Arithmetic(torch.float32), wide, None if w is None else w.double(), *buffers)
    return 1e-5 if error is None else 2 * error.numpy()  # no bound is stated


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_every_strategy_in_openvino_equals_onnx_runtime(name, case, tmp_path):
    pytest.importorskip("openvino")
    fusion = case.create(fusion_onnx.get(name))
    args = drawn(fusion, 3)
    model = export(fusion, args, verify=False)
    files = targets.deploy("openvino", model, tmp_path / "model.xml")
    assert files == (tmp_path / "model.xml", tmp_path / "model.bin")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    larger = drawn(fusion, 7)  # the batch stays dynamic
    (y,), (expected,) = in_openvino(files[0], flat(larger)), Session(model).run(*[x.numpy() for x in flat(larger)])
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= bound(fusion, *larger)).all()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = Net().eval()
    args = (torch.randn(3, 4), torch.randn(3, 5))
    return module, args


@pytest.mark.parametrize("kind", ["path", "bytes", "proto", "result", "weights beside"])
def test_a_network_keeps_names_and_weights(network, kind, tmp_path):
    openvino = pytest.importorskip("openvino")
    module, args = network
    result = export(module, args, tmp_path / "model.onnx", verify=False, external_data=kind == "weights beside")
    model = {"path": tmp_path / "model.onnx", "bytes": result.model.SerializeToString(), "proto": result.model}
    before = result.model.SerializeToString()
    path, weights = targets.deploy("openvino", model.get(kind, result), tmp_path / "model.xml")
    assert result.model.SerializeToString() == before
    network = openvino.Core().read_model(path)
    assert [value.any_name for value in network.inputs] == ["a", "b"]
    assert [value.any_name for value in network.outputs] == ["merged", "median"]
    names = {operator.get_friendly_name() for operator in network.get_ops()}
    assert {"merge/concat_1", "left.weight", "merge.w"} <= names
    assert weights.stat().st_size > 4 * sum(p.numel() for p in module.parameters())  # as float32, not float16
    for y, expected in zip(in_openvino(path, args), module(*args).values(), strict=True):
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_exists_is_replaced_on_request_alone(network, tmp_path):
    pytest.importorskip("openvino")
    module, args = network
    model = export(module, args, verify=False)
    path = tmp_path / "model.xml"
    (tmp_path / "model.bin").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"model\.bin"):
        targets.deploy("openvino", model, path)
    assert not path.exists()
    assert (tmp_path / "model.bin").read_bytes() == b"old"
    path.write_bytes(b"old")
    targets.deploy("openvino", model, path, overwrite=True)
    assert path.read_bytes().startswith(b"<?xml")
    assert (tmp_path / "model.bin").stat().st_size > 1000
    with pytest.raises(FileExistsError, match=r"model\.xml"):
        targets.deploy("openvino", model, path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_written_is_an_error_in_words(network, tmp_path):
    pytest.importorskip("openvino")
    module, args = network
    model = export(module, args, verify=False)
    with pytest.raises(ExportError, match=r"unknown target 'openvin'\. Did you mean 'openvino'\? Known are .*openvino"):
        targets.deploy("openvin", model, tmp_path / "model.xml")
    with pytest.raises(ExportError, match=r"ends in \.xml; got .*model\.onnx"):
        targets.deploy("openvino", model, tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        targets.deploy("openvino", model, tmp_path / "nowhere" / "model.xml")
    with pytest.raises(FileNotFoundError):
        targets.deploy("openvino", tmp_path / "nothing.onnx", tmp_path / "model.xml")
    with pytest.raises(ExportError, match="no ONNX file"):
        targets.deploy("openvino", b"nonsense", tmp_path / "model.xml")
    with pytest.raises(ExportError, match="got int"):
        targets.deploy("openvino", 3, tmp_path / "model.xml")
    foreign = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18, "theirs" : 1]> g (float[2] x) => (float[2] y) { y = theirs.Op(x) }'
    )
    with pytest.raises(ExportError, match=r"OpenVINO cannot read the model: .*theirs"):
        targets.deploy("openvino", foreign, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_says_what_brings_it(network, tmp_path, monkeypatch):
    module, args = network
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"'openvino' needs openvino.*pip install 'fusion-onnx\[openvino\]'"):
        targets.deploy("openvino", export(module, args, verify=False), tmp_path / "model.xml")


def test_a_target_is_added_by_a_file(tmp_path, monkeypatch):
    (tmp_path / "copied.py").write_text(
        "from fusion_exporters.targets import Target\n"
        "class Copied(Target):\n"
        "    title = 'a copy'\n"
        "    def write(self, model, path, *, overwrite):\n"
        "        path.write_bytes(model.SerializeToString())\n"
        "        return (path,)\n"
    )
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert "copied" in targets.names()
    assert targets.deploy("copied", onnx.ModelProto(ir_version=10), tmp_path / "x") == (tmp_path / "x",)
    monkeypatch.delitem(sys.modules, "fusion_exporters.targets.copied")
