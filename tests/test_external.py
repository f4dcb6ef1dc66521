"""Weights beside the model: in one piece or as safetensors, the same bits, whole or not at all."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fusion_onnx
from fusion_exporters import VerificationError, external
from fusion_onnx import ExportError, FusionLayer, Session, create, export, locate, verify


class Tied(nn.Module):
    """An embedding, a merge, and an output layer that shares the embedding's matrix."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(60, 16)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[16, 16], n=16, r=2))
        self.out = nn.Linear(16, 60, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens, x):
        return self.out(self.merge([self.words(tokens), x]))


TOKENS, X = torch.arange(12).reshape(3, 4), torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(True, torch.float32), ("weights.bin", torch.float16), ("weights.safetensors", torch.float32)],
)
def test_weights_beside_the_model(tmp_path, name, dtype):
    network, x = Tied().to(dtype).eval(), X.to(dtype)
    path = tmp_path / "tied.onnx"
    result = export(network, (TOKENS, x), path, external_data=name)
    file = tmp_path / ("tied.onnx.data" if name is True else name)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, file.name}
    assert path.stat().st_size < 6000
    inside = export(network, (TOKENS, x), verify=False)
    (wanted,) = Session(inside).run(TOKENS, x)
    for model in (path, result):
        assert torch.equal(Session(model).run(TOKENS, x)[0], wanted)
        assert verify(network, model, (TOKENS, x)).passed
    assert name is not True or locate(network, result, (TOKENS, x)) is None
    bare = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert np.array_equal(bare.run(None, {"tokens": TOKENS.numpy(), "x": x.numpy()})[0], wanted.numpy())
    loaded = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert np.array_equal(loaded["out.weight"], network.words.weight.detach().numpy())
    if file.suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        read = safetensors.load_file(file)
        assert torch.equal(read["out.weight"], network.words.weight)
        length = int.from_bytes(file.read_bytes()[:8], "little")
        assert json.loads(file.read_bytes()[8 : 8 + length])["out.weight"]["shape"] == [60, 16]


def test_nothing_is_replaced_unless_asked_and_nothing_is_left(tmp_path, monkeypatch):
    network, example = Tied().eval(), (TOKENS, X)
    (tmp_path / "taken").write_text("mine")
    for name in ("taken", "a/b", "", "..", "m.onnx"):
        with pytest.raises((ExportError, FileExistsError)):
            export(network, example, tmp_path / "m.onnx", external_data=name or "/")
    with pytest.raises(ExportError, match="give a path"):
        export(network, example, external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    export(network, example, tmp_path / "m.onnx", external_data="taken", overwrite=True)
    other = Tied().eval()
    with torch.no_grad():
        other.words.weight.mul_(2)
    export(other, example, tmp_path / "m.onnx", external_data="taken", overwrite=True)
    assert verify(other, tmp_path / "m.onnx", example).passed
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(fusion_onnx.fusions.low_rank_concatenation.LowRankConcatenationFusion, "fuse", wrong)
    with pytest.raises((VerificationError, ExportError)):
        export(network, example, tmp_path / "m.onnx", external_data="taken", overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def wrong(self, xs, w, *buffers):
    return xs[0] + 1


def test_too_large_for_one_file_is_said_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(external, "MAX_BYTES", 1000)
    traced = []
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: traced.append(args))
    with pytest.raises(ExportError, match=r"the weights take 4,\d\d\d bytes.*external_data=True, --external-data"):
        export(Tied(), (TOKENS, X), tmp_path / "m.onnx")
    assert not traced


def test_tied_weights_are_stored_once():
    model = export(Tied().eval(), (TOKENS, X)).model
    large = [t for t in model.graph.initializer if np.prod(t.dims) >= 60 * 16]
    assert [t.name for t in large] == ["out.weight"]
