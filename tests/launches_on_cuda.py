"""Every form's launches and copies by the cost rule and by the CUDA provider: run by test_forms.py, on the stand-in."""

import onnx
import onnx_ir as ir
import pytest
import torch

import fusion_onnx
from fusion_exporters.forms.costs import RATES
from fusion_onnx import Session, create
from tests.cuda_standin import counted
from tests.cuda_standin.doubles import OnDevice, Stream, from_dlpack
from tests.test_forms import candidates, values_of


@pytest.fixture(autouse=True)
def torch_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch, "from_dlpack", from_dlpack)


def model_of(body, values, count, dtype):
    """A model of one node, whose parameters are constant."""
    infos = [onnx.helper.make_tensor_value_info(v.name, dtype, ["batch", v.shape[1]]) for v in values[:count]]
    held = [ir.serde.serialize_tensor(ir.tensor(v.const_value.numpy(), name=v.name)) for v in values[count:]]
    node = onnx.helper.make_node(body.name, [v.name for v in values], ["y"], domain=body.domain)
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("y", dtype, None)], held)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(body.domain, 1)]
    functions = [ir.serde.serialize_function(body)]
    return onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


OFTEN = [(torch.float32, 9), (torch.float16, 4)]
ALL = [(dtype, k) for dtype in (torch.float32, torch.float16) for k in (2, 4, 8, 9, 16)]


@pytest.mark.parametrize(
    ("dtype", "k"), [pytest.param(*each, marks=[] if each in OFTEN else pytest.mark.slow) for each in ALL]
)
@pytest.mark.parametrize("name", fusion_onnx.names())
def test_the_rule_counts_what_is_launched(name, dtype, k):
    options = {"weights": [i + 0.5 for i in range(k)]} if name == "weighted_sum" else {}
    fusion = create(name, dims=[16] * k, **options)
    values = values_of(fusion, [4], dtype)
    found = candidates(fusion, [4], dtype)
    for form, body in found.bodies.items():
        session = Session(model_of(body, values, k, values[0].dtype.value), "cuda")
        call = session.bind(*(torch.zeros(4, 16, dtype=dtype).as_subclass(OnDevice) for _ in range(k)))
        with counted() as done:
            call()
        made = done.launches + done.products + done.on_device
        assert sum(work.launches(RATES["cuda"]) for work in found.costs[form].work) == made, form
