"""Verdicts on networks: what is right passes, whatever it casts, ties or rounds; what is wrong does not."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusion_onnx import ExportError, create, export, verify

X, Y = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


class After(nn.Module):
    """A sum, and a function behind it."""

    def __init__(self, function):
        super().__init__()
        self.function, self.total = function, create("sum", dims=[6, 6])

    def forward(self, x, y):
        return self.function(self.total([x, y]))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.sigmoid(h.float()),
        lambda h: F.gelu(h.float()),
        lambda h: torch.tanh(h.half()).to(h.dtype),
        lambda h: h.topk(3, -1).indices,
        lambda h: h.relu().topk(3, -1),
        lambda h: (h > 0).float().topk(3, -1, largest=False).indices,
        lambda h: h.round().long().topk(3, -1),
        lambda h: h.argsort(-1),
        lambda h: h.relu().sort(-1).indices,
        lambda h: h.amax(-1),
    ],
    ids=[
        *("float sigmoid", "float gelu", "half tanh", "topk", "topk of zeros", "topk of a mask", "topk of integers"),
        *("argsort", "sort of zeros", "amax"),
    ],
)
def test_right_files_pass(function):
    assert export(After(function), (X, Y)).verdict.passed


def test_an_example_without_rows_passes():
    network = nn.Sequential(After(F.gelu))
    model = export(network[0], (X, Y)).model
    assert verify(network[0], model, (X[:0], Y[:0])).passed


def test_what_an_operator_of_the_runtime_loses_is_said():
    verdict = export(After(lambda h: h.amax(-1)), (X, Y)).verdict
    assert "ReduceMax" in verdict.known[0]
    assert verdict.summary()["known"] == verdict.known


def lose_nan(model):
    """Put a comparison in place of the graph's Max, which hands NaN on."""
    node = next(n for n in model.graph.node if n.op_type == "Max")
    larger = onnx.helper.make_node("Greater", list(node.input), ["larger"])
    model.graph.node.insert(list(model.graph.node).index(node), larger)
    node.CopyFrom(onnx.helper.make_node("Where", ["larger", *node.input], list(node.output)))
    return model


def test_what_one_output_loses_is_no_excuse_for_another():
    network = After(lambda h: (h.amax(-1), torch.maximum(h, torch.ones(6))))
    model = lose_nan(export(network, (X, Y)).model)
    found = {f.output: bool(f.known) for f in verify(network, model, (X, Y)).findings if f.failed}
    assert found == dict(zip([output.name for output in model.graph.output], (True, False), strict=True))


@pytest.mark.parametrize("inline", ["none", "all"])
def test_a_fusion_that_loses_nan_fails(inline):
    class Largest(type(create("max"))):
        def decompose(self, op, xs, w, *buffers):
            stack = op.Concat(*[op.Unsqueeze(x, op.integers([0])) for x in xs], axis=0)
            return op.ReduceMax(stack, op.integers([0]), keepdims=0)

        def decompose_variadic(self, op, xs, w, *buffers):
            return NotImplemented

    network = nn.Sequential()
    network.largest, network.forward = Largest(), lambda x, y: network.largest([x, y]).exp()
    model = export(network, (X, Y), inline=inline, verify=False).model
    assert {f.failed for f in verify(network, model, (X, Y)).findings if not f.passed} == {"nan"}


def test_nan_that_the_file_loses_is_found():
    network = After(lambda h: torch.maximum(h, torch.ones(6)))
    model = lose_nan(export(network, (X, Y)).model)
    assert {f.failed for f in verify(network, model, (X, Y)).findings if not f.passed} == {"nan"}


def test_a_small_column_beside_a_large_one_has_a_tolerance_of_its_own():
    network = After(lambda h: torch.cat([h * 1e6, h * 1e-3], -1))
    model = export(network, (X, Y)).model
    small = (
        next(t for n in model.graph.node if n.op_type == "Constant" for t in [n.attribute[0].t])
        if not (model.graph.initializer)
        else min(model.graph.initializer, key=lambda t: abs(float(onnx.numpy_helper.to_array(t).max())))
    )
    small.CopyFrom(onnx.numpy_helper.from_array(np.float32(1.00002e-3), small.name))
    assert not verify(network, model, (X, Y)).passed


def test_a_rounding_widens_nothing():
    network = After(lambda h: torch.round(h * 10) + 0.5)
    model = export(network, (X.round(decimals=1) + 0.05, Y.round(decimals=1))).model
    for tensor in model.graph.initializer:
        if onnx.numpy_helper.to_array(tensor) == 0.5:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(1.5), tensor.name))
    findings = verify(network, model, (X.round(decimals=1) + 0.05, Y.round(decimals=1))).findings
    assert all(finding.failed for finding in findings)


def test_random_numbers_are_refused_by_name():
    with pytest.raises(ExportError, match="bernoulli"):
        export(After(lambda h: torch.maximum(F.dropout(h, 0.5, True), h + 100)), (X, Y))


def test_the_caller_s_state_stays():
    state = torch.get_rng_state()
    export(After(F.gelu), (X, Y))
    assert torch.equal(state, torch.get_rng_state())


class Counting(nn.Module):
    """Changes its input, a buffer, a parameter's values and attributes; its outputs depend on all of them."""

    def __init__(self):
        super().__init__()
        self.total, self.seen = create("sum", dims=[6, 6]), []
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x, y):
        x.relu_()
        self.count += 1
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.seen.append(1)
        return self.total([x, y]) * self.count + self.mean


def test_inputs_and_module_are_left_alone():
    network, x, y = Counting(), X.clone(), Y.clone()
    assert export(network, (x, y)).verdict.passed
    assert torch.equal(x, X) and torch.equal(y, Y)
    assert network.seen == [] and float(network.count) == 1 and not network.mean.any()


def test_a_file_without_the_change_in_place_fails():
    class Net(nn.Module):
        def __init__(self, relu):
            super().__init__()
            self.relu, self.total = relu, create("sum", dims=[6, 6])

        def forward(self, x, y):
            return self.total([x.relu_() if self.relu else x, y])

    model = export(Net(False), (X, Y)).model
    assert not verify(Net(True), model, (X.clone(), Y)).passed


def test_masks_without_a_valid_entry_are_tried():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.total = create("sum", dims=[6, 6])

        def forward(self, x, y, keep):
            return self.total([x.masked_fill(~keep, -1e9).softmax(-1), y])

    args = (X, Y, torch.ones(4, 6, dtype=torch.bool))
    model = export(Masked(), args).model
    where = next(n for n in model.graph.node if n.op_type == "Where")
    where.CopyFrom(onnx.helper.make_node("Identity", [where.input[2]], list(where.output)))
    assert not verify(Masked(), model, args).passed


def test_a_declared_shape_that_is_false_is_found():
    network = After(lambda h: h * 2)
    model = export(network, (X, Y)).model
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert "declared" in {f.failed for f in verify(network, model, (X, Y)).findings}


def test_a_part_may_have_an_attribute_called_forms():
    network = After(torch.relu)
    network.forms = nn.ModuleList([nn.Identity()])
    assert export(network, (X, Y)).verdict.passed


def test_a_tolerance_beyond_the_largest_number_is_infinite():
    class Harmonic(nn.Module):
        def forward(self, a, b):
            return 1 / (1 / a + 1 / b)

    a = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert export(Harmonic(), (a, -a * (1 + 2.3e-16))).verdict is not None


def test_an_index_that_ties_do_not_explain_fails():
    network = After(lambda h: h.relu().topk(3, -1).indices)
    model = export(network, (X, Y)).model
    (node,) = [n for n in model.graph.node if n.op_type == "TopK"]
    least = next(a for a in node.attribute if a.name == "largest")
    least.i = 0
    assert not verify(network, model, (X, Y)).passed
