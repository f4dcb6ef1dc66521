"""`locate`: each planted fault is found by `verify`, and named: the node, the fusion, and what is at fault."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from fusion_onnx import FusionLayer, SessionError, create, export, verify
from fusion_onnx.verification import battery
from fusion_onnx.verification.locate import Location, locate
from fusion_onnx.verification.locate import graph as locate_graph
from models import digits
from tests.faults import CONTROLS, FAULTS, SUBJECTS, subject


def fails(module, model, inputs):
    try:
        return not verify(module, model, inputs).passed
    except SessionError:  # ONNX Runtime does not even load it
        return True


@pytest.mark.parametrize("planted", FAULTS, ids=lambda f: f"{f.subject}: {f.name}")
def test_a_planted_fault_is_found_and_located(planted):
    module, _, sound = subject(planted.subject, planted.inline)
    model, inputs = planted.model(), planted.inputs()
    assert model != sound
    assert fails(module, model, inputs)
    assert planted.spoil is None or locate(module, sound, inputs) is None
    found = locate(module, model, inputs)
    assert found is not None
    assert (found.fault, found.fusion) == (planted.fault, planted.fusion), str(found)
    assert found.node == (planted.node or found.node), str(found)
    assert found.case and found.detail.endswith(".")


def test_there_are_enough_of_them():
    assert len({f.plant for f in FAULTS}) >= 50
    assert {f.fault for f in FAULTS} == {"weights", "wiring", "body", "operator", "interface"}
    assert {f.subject for f in FAULTS} <= set(SUBJECTS)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda f: f"{f.subject}: {f.name}")
def test_what_is_no_fault_is_not_found(control):
    module, _, _ = subject(control.subject, control.inline)
    assert verify(module, control.model(), control.inputs()).passed
    assert locate(module, control.model(), control.inputs()) is None


@pytest.mark.parametrize("inline", ["none", "all"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_sound_export_has_no_location(name, inline):
    module, args, model = subject(name, inline)
    assert locate(module, model, args) is None


@pytest.mark.parametrize("name", ["min", "sum", "linear, float64", "layer"])
def test_hostile_values_are_no_fault(name):
    module, args, model = subject(name)
    xs, *rest = args if isinstance(args[0], list) else (list(args),)
    for case, drawn in battery.values(xs, [f"x{i}" for i in range(len(xs))]):
        again = (drawn, *rest) if isinstance(args[0], list) else tuple(drawn)
        assert locate(module, model, again) is None, case


@pytest.mark.parametrize("planted", [f for f in FAULTS if f.spoil], ids=lambda f: f"{f.subject}: {f.name}")
def test_the_battery_shows_what_the_given_values_do_not(planted):
    module, args, _ = subject(planted.subject, planted.inline)
    model = planted.model()
    assert locate(module, model, args) is None
    verdict = verify(module, model, args, battery=True)
    found = locate(module, model, args, battery=True)
    assert (found.fault, found.fusion) == (planted.fault, planted.fusion), str(found)
    assert found.case in {f.case for f in verdict.findings if not f.passed}


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_battery_is_no_fault_of_a_sound_export(name):
    module, args, model = subject(name)
    assert locate(module, model, args, battery=True) is None


def test_a_defect_that_onnx_runtime_has():
    """ReduceMax of ONNX Runtime's CPU provider loses a NaN that is not first in its row: no body may rest on it."""
    fusion, (xs,) = create("max", dims=[4, 4]), ([torch.randn(3, 4), torch.randn(3, 4)],)
    model = export(fusion, (xs,), verify=False).model
    (body,) = model.functions
    (last,) = body.node
    nodes = [
        helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.array([0])), name="axis"),
        *(helper.make_node("Unsqueeze", [x, "axis"], [f"{x}_3"], name=f"unsqueeze_{x}") for x in last.input),
        helper.make_node("Concat", [f"{x}_3" for x in last.input], ["stacked"], axis=0, name="concat"),
        helper.make_node("ReduceMax", ["stacked", "axis"], list(last.output), keepdims=0, name="reduce"),
    ]
    del body.node[:]
    body.node.extend(nodes)
    assert [(f.case, f.failed) for f in verify(fusion, model, (xs,)).findings if f.failed] == [("NaN and Inf", "nan")]
    found = locate(fusion, model, (xs,), battery=True)
    assert (found.fault, found.node, found.case) == ("runtime", "max/reduce", "NaN in x2")


@pytest.mark.parametrize("inline", ["none", "all"])
def test_the_digits_network(inline):
    network, args = digits.build().eval(), digits.example_inputs(4)
    model = export(network, args, inline=inline, verify=False).model
    assert locate(network, model, args) is None
    weights = next(t for t in model.graph.initializer if t.name == "fusion.w")
    values = onnx.numpy_helper.to_array(weights).copy()
    values[17] += 1e-3
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    found = locate(network, model, args)
    assert (found.node, found.fusion, found.strategy) == ("fusion", "fusion", "low_rank_concatenation")
    assert found.fault == "weights"
    assert "[17]" in found.detail


def test_a_location_is_read_by_people_and_by_machines():
    planted = next(f for f in FAULTS if f.name == "an input ignored")
    found = locate(subject("views")[0], planted.model(), planted.inputs())
    assert isinstance(found, Location)
    assert json.loads(json.dumps(found.to_dict())) == {
        "node": "pick",
        "fusion": "pick",
        "strategy": "median",
        "fault": "wiring",
        "case": "batch 3",
        "detail": found.detail,
    }
    assert str(found) == f"wiring at node 'pick' of the fusion 'pick' (median), batch 3: {found.detail}"
    assert "input 2 gets what eager gives to input 1" in found.detail


def test_every_form_of_a_model_is_taken(tmp_path):
    planted = next(f for f in FAULTS if f.name == "weights in the wrong order")
    module, model = subject("views")[0], planted.model()
    path = tmp_path / "views.onnx"
    path.write_bytes(model.SerializeToString())
    before = model.SerializeToString()
    forms = (model, before, path, str(path))
    assert {locate(module, form, planted.inputs()).fusion for form in forms} == {"weigh"}
    assert model.SerializeToString() == before


def test_the_module_is_left_as_it_was():
    module, args, model = subject("views")
    module.train()
    module.head.eval()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    try:
        locate(module, model, args)
        assert module.training and module.pick.training and not module.head.training
    finally:
        module.eval()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert not any(parameter.grad is not None for parameter in module.parameters())


def test_hooks_are_gone_after_an_error():
    module, _, model = subject("views")
    with pytest.raises(RuntimeError):
        locate(module, model, (torch.randn(3, 5), torch.randn(3, 4)))
    assert not any(part._forward_hooks for part in module.modules())


def test_a_module_that_cannot_run_in_float64():
    class Single(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.merge = FusionLayer(create("learned_weighted_sum", dims=[4, 4]))

        def forward(self, a, b):
            if a.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.merge(torch.tanh(a), b)

    module, args = Single().eval(), (torch.randn(3, 4), torch.randn(3, 4))
    model = export(module, args, verify=False).model
    assert locate(module, model, args) is None
    next(n for n in model.graph.node if n.op_type == "Tanh").op_type = "Sin"
    found = locate(module, model, args)
    assert (found.fault, found.node) == ("operator", "Tanh")


def coarse_products(monkeypatch, is_coarse):
    """Let sessions give products in low precision, where `is_coarse(providers)`; a body's node keeps its own name."""
    real = locate_graph.Session

    class Coarse(real):
        def __init__(self, model, providers="auto", **options):
            super().__init__(model, "cpu", **options)
            nodes = [n for n in model.graph.node if n.name.endswith("matmul_2")]
            outputs = {value for node in nodes for value in node.output}
            self.coarse = outputs if is_coarse(providers) and len(model.graph.output) < 30 else set()

        def run(self, *tensors):
            values = zip(self.outputs, super().run(*tensors), strict=True)
            last = bool(self.coarse) and len(self.outputs) == 1  # what comes of a product is as coarse
            return [y.bfloat16().float() if last or info.name in self.coarse else y for info, y in values]

    monkeypatch.setattr(locate_graph, "Session", Coarse)


def test_a_device_that_computes_otherwise(monkeypatch):
    module, args, model = subject("chain")
    coarse_products(monkeypatch, lambda providers: providers != "cpu")
    found = locate(module, model, args, providers=["CPUExecutionProvider"])
    assert (found.fault, found.fusion, found.strategy) == ("device", "grid", "kronecker_concatenation")
    assert found.node == "grid"


@pytest.mark.parametrize("inline", ["none", "all"])
def test_a_runtime_that_computes_otherwise(monkeypatch, inline):
    module, args, model = subject("chain", inline)
    coarse_products(monkeypatch, lambda providers: True)
    found = locate(module, model, args)
    assert (found.fault, found.fusion, found.node) == ("runtime", "grid", "grid/matmul_2")
