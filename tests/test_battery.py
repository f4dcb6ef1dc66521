"""The battery's values and layouts are what their names say; `verify(..., battery=True)` tries them, and names them."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import fusion_onnx
from fusion_onnx import FusionLayer, Session, create, export, verify
from fusion_onnx.verification import battery, trials
from fusion_onnx.verification.arguments import Arguments
from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.subject import Subject
from models import breast_cancer, digits
from tests.mutants import Net, constant, given, replacing, rows, subject

DTYPES = [torch.float16, torch.float32, torch.float64]
SHAPES = [(7,), (5, 7), (2, 5, 7), (2, 3, 4, 7), (0, 7), (1, 1)]
GRID = [pytest.param(d, s, id=f"{str(d)[6:]}-{'x'.join(map(str, s))}") for d in DTYPES for s in SHAPES]
LAYOUTS = ("not contiguous", "sliced", "with an offset", "broadcast, stride 0", "Fortran order")
SPOILT = ("NaN", "+Inf", "-Inf")


def drawn(dtype, shape, k=3, **options):
    like = [torch.zeros(shape, dtype=dtype) for _ in range(k)]
    return dict(battery.values(like, [f"x{i}" for i in range(1, k + 1)], **options))


@pytest.mark.parametrize(("dtype", "shape"), GRID)
def test_every_class_keeps_shape_and_dtype(dtype, shape):
    found = drawn(dtype, shape)
    assert {name.partition(" in x")[0] for name in found} == set(battery.names())
    for name, xs in found.items():
        assert [(x.dtype, tuple(x.shape)) for x in xs] == [(dtype, shape)] * 3, name
    again = drawn(dtype, shape)
    for name in found:
        for a, b in zip(found[name], again[name], strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name
    other = drawn(dtype, shape, seed=5)
    assert max(shape) < 2 or 0 in shape or not torch.equal(found["normal"][0], other["normal"][0])


@pytest.mark.parametrize(("dtype", "shape"), [trial for trial in GRID if 0 not in trial.values[1]])
def test_values_are_what_the_class_is_called(dtype, shape):
    found = drawn(dtype, shape)
    info = torch.finfo(dtype)
    flat = {name: torch.cat([x.double().flatten() for x in xs]) for name, xs in found.items()}
    sizes = {name: x.abs() for name, x in flat.items()}
    for name, x in flat.items():
        special = any(name.startswith(word) for word in (*SPOILT, "Inf"))
        assert special != bool(x.isfinite().all()), name
    assert sizes["huge"].max() > info.max / 1e5 and sizes["huge"].max() < info.max
    assert (sizes["tiny"] >= info.smallest_normal).all() and (sizes["tiny"] <= 8 * info.smallest_normal).all()
    assert (sizes["subnormal"] <= info.smallest_normal).all() and (sizes["subnormal"] > 0).any()
    assert sizes["small, 1e-4"].max() < 1e-3
    assert sizes["large, 1e4"].max() > (100 if len(sizes["normal"]) < 9 else 500)
    assert sizes["overflow"].min() > 0.89 * info.max
    assert len(flat["all equal"].unique()) == 1
    assert set(flat["ties"].tolist()) <= {-1.0, 0.0, 1.0}
    assert (flat["zeros of both signs"] == 0).all()
    assert (flat["negative"] <= 0).all()
    if len(sizes["normal"]) > 20:
        spread = sizes["mixed magnitudes"].log2()
        assert spread.max() - spread.min() > 8
        assert torch.signbit(flat["zeros of both signs"]).unique().numel() == 2
        assert len(flat["ties"].unique()) == 3
    a, b, _ = (x.double() for x in found["cancelling"])
    assert ((a + b).abs() <= 8 * info.eps * a.abs() + info.smallest_normal).all()
    first, second, _ = found["Inf - Inf"]
    assert ((first == torch.inf) & (second == -torch.inf)).any()


@pytest.mark.parametrize(("dtype", "shape"), [trial for trial in GRID if 0 not in trial.values[1]])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_special_values_are_in_the_input_that_is_named_and_there_alone(dtype, shape, at):
    for word, value in zip(SPOILT, (torch.nan, torch.inf, -torch.inf), strict=True):
        xs = drawn(dtype, shape)[f"{word} in x{at}"]
        for i, x in enumerate(xs, 1):
            odd = ~x.isfinite()
            assert bool(odd.any()) == (i == at)
            assert torch.equal(x[odd], torch.full_like(x[odd], value)) or (value != value and x[odd].isnan().all())


def test_special_values_leave_rows_clean():
    for at in (1, 2, 3):
        x = drawn(torch.float32, (400, 7))[f"NaN in x{at}"][at - 1]
        clean = x.isfinite().all(-1).float().mean()
        assert 0.3 < clean < 0.9


def test_classes_for_two_inputs_want_two():
    names = set(drawn(torch.float32, (3, 4), k=1))
    assert "cancelling" not in names and "Inf - Inf" not in names and "NaN in x1" in names
    assert dict(battery.values([], [])) is not None


def test_huge_keeps_to_the_largest_that_is_asked_for():
    for name, xs in drawn(torch.float32, (50, 7), largest=1e6).items():
        if name in ("huge", "overflow", "mixed magnitudes"):
            assert all(x.abs().max() <= 1e6 for x in xs), name


@pytest.mark.parametrize(("dtype", "shape"), GRID)
def test_layouts(dtype, shape):
    tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
    found = dict(battery.layouts(tensor))
    if 0 in shape:
        assert not found
        return
    assert tuple(found) == LAYOUTS
    for name, laid in found.items():
        assert (laid.dtype, laid.shape) == (tensor.dtype, tensor.shape)
        if name != "broadcast, stride 0":
            assert torch.equal(laid, tensor), name
    plain = tensor.stride()
    assert found["not contiguous"].stride() == tuple(2 * s for s in plain)
    assert found["sliced"].stride()[0] == 2 * plain[0]
    assert found["with an offset"].storage_offset() == tensor[0].numel()
    broadcast = found["broadcast, stride 0"]
    assert torch.equal(broadcast, tensor[:1].expand(shape))
    assert shape[0] == 1 or broadcast.stride()[0] == 0
    fortran = found["Fortran order"]
    assert fortran.permute(*reversed(range(len(shape)))).is_contiguous()


@pytest.mark.parametrize("numpy", [False, True], ids=["torch", "numpy"])
def test_layouts_reach_the_session_as_they_are(numpy, monkeypatch):
    module, model = subject("low_rank_concatenation")
    seen = []
    run = Session.run

    def watched(self, *inputs, **kwargs):
        seen.append(inputs)
        return run(self, *inputs, **kwargs)

    monkeypatch.setattr(Session, "run", watched)
    verdict = verify(module, model, given("low_rank_concatenation", module, 1.0, torch.float32), battery=True)
    assert verdict.passed, verdict.reasons
    cases = {f.case for f in verdict.findings}
    assert {*LAYOUTS, *(f"{name}, as numpy arrays" for name in LAYOUTS)} <= cases
    kind = np.ndarray if numpy else torch.Tensor
    strides = {tuple(np.sign(x.strides) if numpy else x.stride()) for call in seen for x in call if isinstance(x, kind)}
    assert any(0 in each for each in strides)


# --- verify(..., battery=True) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fusion_onnx.names())
def test_every_strategy_passes_and_every_class_is_tried(name):
    module, model = subject(name)
    verdict = verify(module, model, given(name, module, 1.0, torch.float32), battery=True)
    assert verdict.passed, verdict.reasons
    cases = {finding.case for finding in verdict.findings}
    assert set(battery.names()) <= {case.partition(" in ")[0] for case in cases}
    assert {f"NaN in x{i}" for i in range(1, len(module.dims) + 1)} <= cases


@pytest.mark.parametrize("source", [digits, breast_cancer], ids=["digits", "breast_cancer"])
def test_networks_pass(source):
    torch.manual_seed(0)
    network = source.build().eval()
    args = source.example_inputs(8)
    verdict = verify(network, export(network, args, verify=False).model, args, battery=True)
    assert verdict.passed, verdict.reasons


@functools.cache
def network():
    module = Net().eval()
    args = tuple(rows((4, 6), 1.0, torch.float32))
    return module, export(module, args, verify=False).model, args


def changed(step):
    """Return the network's model with a step between its last node and its output."""
    model = onnx.ModelProto()
    model.CopyFrom(network()[1])
    (last,) = [n for n in model.graph.node if "y" in n.output]
    last.output[0] = "before"
    model.graph.node.extend(step("before", "y", TensorProto.FLOAT))
    return model


FAULTS = {
    "NaN": (replacing(lambda a, b, elem: [helper.make_node("IsNaN", [a], [b])]), {"NaN in x1", "NaN in x2"}, "nan"),
    "large values": (
        lambda a, b, elem: [constant("top", 1e3, elem), helper.make_node("Min", [a, "top"], [b])],
        {"large, 1e4"},
        "error",
    ),
    "negative values": (lambda a, b, elem: [helper.make_node("Relu", [a], [b])], {"normal", "negative"}, "error"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_findings_name_the_class(what):
    step, classes, failed = FAULTS[what]
    module, _, args = network()
    model = changed(step)
    verdict = verify(module, model, args, battery=True)
    found = {f.case: f.failed for f in verdict.findings if not f.passed}
    assert not verdict.passed
    assert classes <= set(found)
    assert {found[name] for name in classes} == {failed}
    assert all(name in str(verdict) for name in classes)
    if what not in ("negative values", "NaN", "large values"):
        assert verify(module, model, args).passed  # the given inputs alone do not show it


def test_many_rows_have_values_of_every_size():
    module, model, args = network()
    (trial,) = trials.many_rows(Subject(EvalMode(module), Arguments(args)), Session(model).inputs)
    for x, tensor in zip(args, trial.arguments.args, strict=True):
        assert (tensor.shape, tensor.dtype) == ((trials.ROWS, *x.shape[1:]), x.dtype)
        assert set(range(-20, 20)) <= set(tensor.abs().log2().floor().int().flatten().tolist())
        assert 0.4 < (tensor < 0).float().mean() < 0.6
    assert trial.name in {f.case for f in verify(module, model, args, battery=True).findings}
    fixed = export(module, args, verify=False, dynamic=False).model
    assert trials.many_rows(Subject(EvalMode(module), Arguments(args)), Session(fixed).inputs) == []


def beyond_row(count):
    def step(a, b, elem):
        places = {"at": count, "end": 2**40, "axis": 0}
        return [
            *(constant(name, [value], TensorProto.INT64) for name, value in places.items()),
            helper.make_node("Slice", [a, "axis", "at", "axis"], ["head"]),
            helper.make_node("Slice", [a, "at", "end", "axis"], ["tail"]),
            helper.make_node("Neg", ["tail"], ["turned"]),
            helper.make_node("Concat", ["head", "turned"], [b], axis=0),
        ]

    return step


def test_a_fault_beyond_the_rows_that_are_given_is_found():
    module, _, args = network()
    verdict = verify(module, changed(beyond_row(100)), args, battery=True)
    assert [f.case for f in verdict.findings if not f.passed] == [f"batch {trials.ROWS}, log-uniform"]


def test_a_weight_that_no_output_shows_is_found():
    module, model, args = network()
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    (held,) = [t for t in wrong.graph.initializer if t.name == "merge.w"]
    values = onnx.numpy_helper.to_array(held).copy()
    values.flat[3] = np.nextafter(values.flat[3], np.float32(9))
    held.CopyFrom(onnx.numpy_helper.from_array(values, held.name))
    assert verify(module, wrong, args).passed
    (finding,) = [f for f in verify(module, wrong, args, battery=True).findings if not f.passed]
    assert (finding.case, finding.failed) == ("fusion by fusion", "fusion")
    assert "'merge'" in finding.detail and "weights" in finding.detail


class Growing(torch.nn.Module):
    """Overflows from inputs of 10^10 on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.merge = FusionLayer(create("linear_concatenation", dims=[3, 3], n=4))

    def forward(self, x1, x2):
        h = self.merge(x1, x2)
        return h * h * h * h


def test_a_network_that_overflows_passes_and_is_compared():
    module = Growing().eval()
    args = (torch.randn(4, 3), torch.randn(4, 3))
    verdict = verify(module, export(module, args, verify=False).model, args, battery=True)
    assert verdict.passed, verdict.reasons
    huge = next(f for f in verdict.findings if f.case == "huge")
    assert huge.undetermined == 0
