"""Pipelines that call torch.onnx.export themselves."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import fusion_onnx
from fusion_onnx import ExportError, FusionLayer, create


class Views(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left = torch.nn.Linear(4, 6)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[6, 4], n=4, r=2))
        self.last = FusionLayer(create("median", dims=[4, 4, 4]))

    def forward(self, x, y):
        z = self.merge(self.left(x), y)
        return self.last(z, x, y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("as_proto", [False, True])
def test_a_plain_export_call_keeps_its_fusions(tmp_path, as_proto):
    network, example = Views().eval(), (torch.randn(3, 4), torch.randn(3, 4))
    program = torch.onnx.export(
        network,
        example,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: "batch"}, {0: "batch"}),
        custom_translation_table=fusion_onnx.translations(),
    )
    if as_proto:
        proto = program.model_proto
        assert fusion_onnx.attach(proto, network) is proto
        onnx.save(proto, tmp_path / "views.onnx")
    else:
        assert fusion_onnx.attach(program, network) is program
        program.save(tmp_path / "views.onnx")
    model = onnx.load(tmp_path / "views.onnx")
    assert [node.name for node in model.graph.node if node.domain == "fusion_onnx"] == ["merge", "last"]
    onnx.checker.check_model(model, full_check=True)
    others = [torch.randn(7, 4), torch.randn(7, 4)]
    session = onnxruntime.InferenceSession(str(tmp_path / "views.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), others, strict=True)})
    np.testing.assert_allclose(y, network(*others).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert fusion_onnx.verify(network, tmp_path / "views.onnx", example).passed


class Half(torch.nn.Module):
    """Operators that torch's export gives other digits, other bounds or another dtype."""

    def __init__(self):
        super().__init__()
        self.sum = create("sum", dims=[4, 4])

    def forward(self, x, y):
        z = self.sum([x, y])
        return torch.log1p(z), z.clamp(max=0.3), z.cumsum(1)


@pytest.mark.filterwarnings("ignore")
def test_a_plain_export_call_keeps_digits_infinities_and_dtypes():
    x = torch.tensor([[1e-4, 0.5, -torch.inf, 1.0]] * 2, dtype=torch.float16)
    program = torch.onnx.export(
        Half().eval(),
        (x, torch.zeros_like(x)),
        dynamo=True,
        verbose=False,
        custom_translation_table=fusion_onnx.translations(),
    )
    model = fusion_onnx.attach(program).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy(), "y": torch.zeros_like(x).numpy()})
    for got, want in zip(found, Half()(x, torch.zeros_like(x)), strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-3)


def test_what_has_no_fusion_is_refused():
    with pytest.raises(ExportError, match=r"custom_translation_table=fusion_onnx\.translations\(\)"):
        fusion_onnx.attach(fusion_onnx.export(torch.nn.Linear(3, 3), torch.randn(2, 3)).model)
    with pytest.raises(ExportError, match="attach takes what"):
        fusion_onnx.attach("model.onnx")
