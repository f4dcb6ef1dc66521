"""Verification: what is wrong with a model is found, named and measured; what is right passes."""

import io
import json

import numpy as np
import onnx
import pytest
import torch

import fusion_onnx
from fusion_onnx import FusionLayer, create, export, verify
from fusion_onnx.verification.compare import compare


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[4, 6], n=5))
        self.pick = create("median", dims=[5, 5, 5, 5])

    def forward(self, a, b):
        h = self.merge(a, b)
        return self.pick([h, h * h, h + 1, 1 - h])


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def args():
    return torch.randn(3, 4), torch.randn(3, 6)


@pytest.fixture(scope="module")
def model(net, args):
    return export(net, args, verify=False).model


def copy(model):
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def test_equal(net, model, args, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    for form in (model, model.SerializeToString(), path):
        for inputs in (args, None):
            verdict = verify(net, form, inputs)
            assert verdict
            assert verdict.passed
            assert verdict.providers == ("CPUExecutionProvider",)
    sizes = {finding.case for finding in verify(net, model, args).findings}
    assert sizes == {"batch 3", "batch 7", "batch 1", "NaN and Inf"}


def test_a_fusion_is_also_tried_with_one_row_and_with_none():
    fusion = create("median", dims=[4, 4])
    xs = [torch.randn(3, 4), torch.randn(3, 4)]
    verdict = export(fusion, (xs,)).verdict
    assert [f.case for f in verdict.findings] == ["batch 3", "batch 7", "batch 1", "batch 0", "NaN and Inf"]


def broken(model, what):
    twin = copy(model)
    nodes = {n.name: n for n in twin.graph.node}
    bodies = {f.name: f for f in twin.functions}
    median = next(f for name, f in bodies.items() if name.startswith("median"))
    (weights,) = [t for t in twin.graph.initializer if t.name == "merge.w"]
    if what == "upper median":
        for node in median.node:
            node.op_type = {"Min": "Max", "Max": "Min"}[node.op_type]
    elif what == "a weight off by a hundred ulp":
        values = onnx.numpy_helper.to_array(weights).copy()
        values[int(np.argmax(np.abs(values)))] *= 1 + 100 * 2.0**-23
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    elif what == "an input ignored":
        nodes["pick"].input[1] = nodes["pick"].input[0]
    elif what == "batch baked in":
        twin.graph.output[0].type.tensor_type.shape.Clear()
        shape = onnx.numpy_helper.from_array(np.array([3, 5]), "baked")
        twin.graph.initializer.append(shape)
        node = nodes["pick"]
        out = node.output[0]
        node.output[0] = "before"
        twin.graph.node.append(onnx.helper.make_node("Reshape", ["before", "baked"], [out], name="bake"))
    elif what == "another dtype":
        node = nodes["pick"]
        node.output[0] = "before"
        twin.graph.node.append(onnx.helper.make_node("Cast", ["before"], ["y"], to=onnx.TensorProto.DOUBLE))
        twin.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    elif what == "another shape":
        node = nodes["pick"]
        node.output[0] = "before"
        twin.graph.node.append(onnx.helper.make_node("Transpose", ["before"], ["y"], perm=[1, 0]))
        twin.graph.output[0].type.tensor_type.shape.Clear()
    elif what == "one output more":
        twin.graph.output.append(twin.graph.output[0])
        twin.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["z"]))
        twin.graph.output[1].name = "z"
    elif what == "half precision inside":
        node = nodes["pick"]
        node.output[0] = "before"
        cast = onnx.helper.make_node
        twin.graph.node.append(cast("Cast", ["before"], ["half"], to=onnx.TensorProto.FLOAT16))
        twin.graph.node.append(cast("Cast", ["half"], ["y"], to=onnx.TensorProto.FLOAT))
    return twin


FAULTS = {
    "upper median": "error",
    "a weight off by a hundred ulp": "error",
    "an input ignored": "error",
    "batch baked in": "run",
    "another dtype": "dtype",
    "another shape": "shape",
    "one output more": "count",
    "half precision inside": "error",
}


@pytest.mark.parametrize("what", FAULTS)
def test_planted_faults_are_found(net, model, args, what):
    verdict = verify(net, broken(model, what), args)
    assert not verdict.passed
    assert FAULTS[what] in {finding.failed for finding in verdict.findings}
    assert FAULTS[what] in str(verdict)
    json.loads(verdict.to_json())


def test_nan_lost_is_found():
    fusion = create("max", dims=[3, 3])
    xs = [torch.randn(4, 3), torch.randn(4, 3)]
    xs[0][1, 1] = float("nan")
    model = export(fusion, (xs,), verify=False).model
    body = model.functions[0]
    body.node[0].CopyFrom(onnx.helper.make_node("Where", ["c", "x1", "x2"], ["y"], name="where"))
    body.node.insert(0, onnx.helper.make_node("Greater", ["x1", "x2"], ["c"], name="greater"))
    verdict = verify(fusion, model, (xs,))
    assert verdict.findings[0].failed == "nan"
    assert verdict.findings[0].at == (1, 1)


def test_the_wrong_sign_of_infinity_is_found_and_the_sign_of_zero_is_not():
    eager, model = np.array([np.inf, 0.0, 1.0]), np.array([-np.inf, -0.0, 1.0])
    finding = compare("c", "y", ("float32", "float32"), eager, model, 0.0)
    assert (finding.failed, finding.at) == ("inf", (0,))
    assert compare("c", "y", ("float32", "float32"), np.array([0.0]), np.array([-0.0]), 0.0).passed


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_faults_are_found_whatever_the_scale_of_the_data(scale):
    fusion = create("low_rank_concatenation", dims=[8, 8], n=8, r=4)
    xs, w = [scale * torch.randn(5, 8), scale * torch.randn(5, 8)], torch.randn(fusion.calculate_l())
    model = export(fusion, (xs, w)).model
    assert verify(fusion, model, (xs, w)).passed
    off = w.clone()
    off[0] *= 1 + 1e-4

    class Off(torch.nn.Module):
        def forward(self, xs, w):
            return fusion(xs, off.to(w.dtype))

    assert not verify(Off(), model, (xs, w)).passed


def test_float64_is_held_to_float64():
    fusion = create("linear_concatenation", dims=[8, 8], n=8)
    xs = [torch.randn(5, 8, dtype=torch.float64) for _ in "ab"]
    w = torch.randn(fusion.calculate_l(), dtype=torch.float64)
    model = export(fusion, (xs, w)).model
    assert verify(fusion, model, (xs, w)).passed
    single = create("linear_concatenation", dims=[8, 8], n=8)

    class Single(torch.nn.Module):
        def forward(self, xs, w):
            return single([x.float() for x in xs], w.float()).double()

    # what computes in float32 inside has float32's own error, whatever its file does; the other way round it is a fault
    assert verify(Single(), export(Single(), (xs, w)).model, (xs, w)).passed
    assert not verify(fusion, export(Single(), (xs, w), verify=False).model, (xs, w)).passed


def test_table_and_json_say_what_str_says(net, model, args):
    from rich.console import Console

    verdict = verify(net, broken(model, "upper median"), args)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(verdict.table())
    assert "FAILED" in console.export_text()
    data = json.loads(verdict.to_json())
    assert data["passed"] is False
    assert data["findings"][0]["failed"] == "error"
    assert data["findings"][0]["error"] > data["findings"][0]["tolerance"]


def test_training_mode_comes_back(net, model, args):
    net.train()
    verify(net, model, args)
    assert net.training
    net.eval()


def test_wrong_inputs_are_an_error_not_a_verdict(net, model):
    with pytest.raises(fusion_onnx.FusionError):
        verify(net, model, (torch.randn(3, 5), torch.randn(3, 6)))
    with pytest.raises(fusion_onnx.SessionError):
        verify(net, b"no model", (torch.randn(3, 4), torch.randn(3, 6)))


def test_outputs_in_another_order_under_each_others_names():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.top, self.total = create("max", dims=[3, 3]), create("sum", dims=[3, 3])

        def forward(self, a, b):
            return {"top": self.top([a, b]), "total": self.total([a, b])}

    module, args = Pair(), (torch.randn(4, 3), torch.randn(4, 3))
    model = export(module, args, verify=False).model
    assert verify(module, model, args).passed
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[::-1])
    (finding,) = verify(module, model, args).findings
    assert finding.failed == "names"
    assert "['total', 'top']" in finding.detail
