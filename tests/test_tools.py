"""What docs/differences.md says of ONNX's own rules and of other tools; a line that holds no longer is found out."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import version_converter
from torch import nn

from fusion_onnx import FusionLayer, Session, create, export


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.merge = FusionLayer(create("sum", dims=[4, 4]))

    def forward(self, ids, x):
        return self.merge(self.words(ids), x)


def test_a_negative_index_counts_from_the_end():
    torch.manual_seed(0)
    network = Words().eval()
    session = Session(export(network, (torch.tensor([[1], [2]]), torch.zeros(2, 1, 4))))
    x = torch.zeros(1, 1, 4)
    with pytest.raises(IndexError):
        network(torch.tensor([[-1]]), x)
    assert torch.equal(session.run(torch.tensor([[-1]]), x)[0], network(torch.tensor([[8]]), x).detach())


def projection(**options):
    torch.manual_seed(0)
    layer = FusionLayer(create("low_rank_concatenation", dims=[8, 8], n=8, r=4))
    return export(layer, (torch.randn(3, 8), torch.randn(3, 8)), verify=False, **options).model


def test_the_version_converter_drops_functions():
    converted = version_converter.convert_version(projection(), 21)
    assert not converted.functions
    with pytest.raises(Exception, match="fusion_onnx"):
        onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    inlined = version_converter.convert_version(projection(inline="all"), 21)
    onnxruntime.InferenceSession(inlined.SerializeToString(), providers=["CPUExecutionProvider"])
    assert projection(opset=21).opset_import[0].version == 21


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prepared", [False, True])
def test_quantization_leaves_functions_in_float(tmp_path, prepared):
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnx.save(projection(), tmp_path / "float.onnx")
    if prepared:
        quant_pre_process(tmp_path / "float.onnx", tmp_path / "float.onnx", skip_symbolic_shape=True)
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert ("MatMulInteger" in operators) == prepared
    x = np.ones((2, 8), np.float32)
    assert np.isfinite(Session(tmp_path / "int8.onnx").run(x, x)[0]).all()
