"""A fusion by itself is written, not traced, and the file is the one that tracing gives, byte for byte."""

import pytest
import torch
from torch.utils import _pytree as pytree

import fusion_onnx
from fusion_exporters import exporter
from fusion_exporters.single import single
from fusion_onnx import FusionLayer, create, export
from tests.test_export import drawn, flat

FIRST = [pytest.param(name, fusion_onnx.get(name).cases[0], id=name) for name in fusion_onnx.names()]


@pytest.fixture
def traces(monkeypatch):
    """Count the calls of torch's exporter."""
    calls = []
    original = torch.onnx.export

    def counting(*args, **options):
        calls.append(args[0])
        return original(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", counting)
    return calls


def both(monkeypatch, traces, module, args, **options):
    """Return the bytes of the file that is written without tracing, and of the traced one."""
    written = export(module, args, verify=False, **options).model.SerializeToString(deterministic=True)
    assert not traces, "it was traced"
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "single", lambda *_: None)
        traced = export(module, args, verify=False, **options).model.SerializeToString(deterministic=True)
    assert len(traces) == 1
    return written, traced


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_every_strategy_is_written_as_it_is_traced(name, case, monkeypatch, traces):
    fusion = case.create(fusion_onnx.get(name))
    written, traced = both(monkeypatch, traces, fusion, drawn(fusion, 3))
    assert written == traced


# what decides the file beside the strategy, each value at least once; nothing couples them
VARIANTS = {
    "float64, opset 21": ("l2_norm", {"dims": [4, 4]}, {"dtype": torch.float64}, {"opset": 21}),
    "float16, inline": ("mean", {"dims": [4, 4, 4]}, {"dtype": torch.float16}, {"inline": "all"}),
    "bfloat16, opset 25": ("max", {"dims": [4, 4]}, {"dtype": torch.bfloat16}, {"opset": 25}),
    "rank 1": ("concatenation", {"dims": [4, 3]}, {"rank": 1}, {}),
    "rank 4, static": ("kronecker_concatenation", {"dims": [4, 4]}, {"rank": 4}, {"dynamic": None}),
    "names": ("sum", {"dims": [4, 4]}, {}, {"input_names": ["left", "right"], "output_names": ["both"]}),
    "two axes": (
        "linear_concatenation",
        {"dims": [4, 3], "n": 5},
        {"rank": 3},
        {"dynamic": {"x1": {0: "b", 1: "time"}, "x2": {0: "b", 1: "time"}}},
    ),
    "the last axis": ("median", {}, {}, {"dynamic": {"x1": {1: "width"}, "x2": {1: "width"}}}),
    "fastest": ("weighted_sum", {"dims": [4, 4], "weights": [1.0, 0.5]}, {}, {"form": "fastest"}),
    "a form": ("low_rank_concatenation", {"dims": [4, 3], "n": 5}, {}, {"form": "dense"}),
    "buffers of another dtype": (
        "random_matrix_adaptation",
        {"dims": [64, 64], "n": 128, "r": 80},  # beyond what torch's exporter folds
        {"dtype": torch.float16},
        {},
    ),
    "an empty batch": ("prod", {"dims": [4, 4]}, {"batch": 0}, {}),
}


@pytest.mark.parametrize("what", VARIANTS)
def test_what_else_decides_the_file(what, monkeypatch, traces):
    name, options, data, export_options = VARIANTS[what]
    fusion = create(name, **options)
    xs = drawn(create(name, **{"dims": [4, 4], **options}), **{"batch": 3, **data})
    written, traced = both(monkeypatch, traces, fusion, xs, **export_options)
    assert written == traced


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("learned_weighted_sum", {}, torch.float32),
        ("low_rank_concatenation", {"n": 5}, torch.float64),
        ("linear_concatenation", {"dims": [64, 64], "n": 128}, torch.float16),  # w beyond what torch's exporter folds
        ("random_matrix_adaptation", {"dims": [64, 64], "n": 128, "r": 80}, torch.float32),
        ("median", {}, torch.float32),
    ],
)
@pytest.mark.parametrize("listed", [False, True], ids=["one by one", "as a list"])
def test_a_layer_is_written_with_w_inside(name, options, dtype, listed, monkeypatch, traces):
    torch.manual_seed(0)
    layer = FusionLayer(create(name, **{"dims": [4, 4], **options})).to(dtype)
    xs = drawn(layer.fusion, 3, dtype)[0]
    written, traced = both(monkeypatch, traces, layer, (xs,) if listed else tuple(xs))
    assert written == traced
    model = export(layer, tuple(xs)).model
    inside = {i.name: list(i.dims) for i in model.graph.initializer}
    assert inside.get("w") == (None if layer.w is None else [layer.w.numel()])
    assert [n.domain for n in model.graph.node] == ["fusion_onnx"]


class Twice(FusionLayer):
    def forward(self, *x):
        return super().forward(*x) * 2


class Shifting(fusion_onnx.get("sum")):
    def check_inputs(self, x):
        return [t + 1 for t in super().check_inputs(x)]


def hooked():
    layer = FusionLayer(create("sum", dims=[4, 4]))
    layer.fusion.register_forward_hook(lambda module, args, y: y * 2)
    return layer


class Branching(fusion_onnx.get("sum")):
    """What one run cannot show: another result for large batches."""

    def check_inputs(self, x):
        x = super().check_inputs(x)
        return [t / 2 for t in x] if x[0].shape[0] > 100 else x


class Halved(fusion_onnx.Fusion):
    """A strategy of a user's own: written too, since torch.export sees the one call and no other branch."""

    equal_dims = True

    def calculate_n(self, dims=None):
        return (dims or self.dims)[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w):
        return (xs[0] + xs[1]) / 2

    def decompose(self, op, xs, w):
        return op.Div(op.Add(*xs), op.constant(2))


def replaced():
    fusion = create("sum", dims=[4, 4])
    fusion.check_inputs = lambda x: [t * 2 for t in x]
    return fusion


def test_a_users_own_strategy_is_written_too(monkeypatch, traces):
    fusion = Halved(dims=[4, 4])
    written, traced = both(monkeypatch, traces, fusion, drawn(fusion, 3))
    assert written == traced


def test_a_branch_on_the_batch_size_is_seen():
    with pytest.raises(fusion_onnx.ExportError, match="larger than 100"):
        export(Branching(dims=[4, 4]), (drawn(create("sum", dims=[4, 4]), 3)[0],))


TRACED = {
    "keywords": (lambda: create("metric", metric=lambda v: torch.logsumexp(input=v, dim=-1)), {}),
    "a method of the instance": (replaced, {}),
    "a preprocess function": (lambda: create("sum", preprocess_functions="relu"), {}),
    "a postprocess function": (lambda: create("sum", postprocess_functions=torch.exp), {}),
    "a callable metric": (lambda: create("metric", metric=lambda v: v.logsumexp(-1)), {}),
    "a layer's subclass": (lambda: Twice(create("sum", dims=[4, 4])), {}),
    "a check that computes": (Shifting, {}),
    "a hook": (hooked, {}),
    "algebra's network": (lambda: torch.nn.Sequential(FusionLayer(create("sum", dims=[4, 4])), torch.nn.Tanh()), {}),
}


@pytest.mark.parametrize("what", TRACED)
def test_what_is_more_than_one_node_is_traced_and_right(what, traces):
    make, options = TRACED[what]
    module = make()
    xs = drawn(create("sum", dims=[4, 4]), 3)[0]
    result = export(module, (xs,), **options)
    assert len(traces) == 1
    assert result.verdict.passed
    torch.testing.assert_close(fusion_onnx.Session(result.model, "cpu").run(*xs)[0], module(xs))


def test_w_of_two_axes_is_an_input_as_it_is(traces):
    fusion = create("learned_weighted_sum", dims=[4, 4])
    xs, w = drawn(fusion, 3)
    result = export(fusion, (xs, w.reshape(1, 2)))
    assert len(traces) == 1
    assert [[d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.model.graph.input][-1] == [1, 2]
    assert result.verdict.passed


def test_axes_that_do_not_agree_are_refused_as_tracing_refuses_them():
    fusion, xs = create("sum"), drawn(create("sum", dims=[4, 4]), 3)[0]
    with pytest.raises(fusion_onnx.ExportError, match="came out as"):
        export(fusion, (xs,), dynamic={"x1": {0: "a"}, "x2": {0: "b"}})
    with pytest.raises(fusion_onnx.ExportError, match=r"x2|was to be dynamic"):
        export(fusion, (xs,), dynamic={"x1": {0: "a"}})


def test_the_file_is_what_was_verified_and_one_line_more(tmp_path):
    import onnx

    fusion = create("median", dims=[4, 4, 4])
    result = export(fusion, drawn(fusion, 3), tmp_path / "median.onnx")
    assert onnx.load(result.path) == result.model
    plain = export(fusion, drawn(fusion, 3), verify=False).model.SerializeToString(deterministic=True)
    assert result.path.read_bytes().startswith(plain)
    assert result.model.metadata_props[-1].key == "fusion_onnx.verification"


def test_a_network_keeps_its_parameters_as_its_fusions_take_them():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.merge = FusionLayer(create("linear_concatenation", dims=[64, 64], n=128))

        def forward(self, a, b):
            return torch.relu(self.merge(a, b))

    model = export(Net(), (torch.randn(3, 64), torch.randn(3, 64))).model
    assert {i.name: list(i.dims) for i in model.graph.initializer} == {"merge.w": [128 * 128]}
    assert "Reshape" not in {n.op_type for n in model.graph.node}


class Around(torch.nn.Module):
    """A network whose fusion's weights, too many for torch to fold, are read elsewhere too."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.merge = FusionLayer(create("linear_concatenation", dims=[64, 64], n=128))
        self.w = torch.nn.Parameter(torch.ones(1, 128 * 128))

    def forward(self, a, b):
        if self.what == "an operator":
            return self.merge(a, b) * self.merge.w.sum()
        if self.what == "an output":
            return self.merge(a, b), self.merge.w
        if self.what == "a flat output":
            return self.merge(a, b), self.merge.w.reshape(-1)
        if self.what == "half precision":
            return self.merge(a, b) + self.merge.fusion([a.half(), b.half()], self.merge.w.half()).float()
        return torch.cond(
            a.sum() > 0,
            lambda a, b: self.merge(a, b) * self.w.mean(),
            lambda a, b: self.merge(b, a) + self.w.mean(),
            (a, b),
        )


@pytest.mark.parametrize("what", ["an operator", "an output", "a flat output", "half precision", "branches"])
def test_weights_that_others_read_are_stored_once_and_right(what):
    torch.manual_seed(0)
    network, inputs = Around(what), (torch.randn(3, 64), torch.randn(3, 64))
    model = export(network, inputs, verify=what != "half precision").model
    expected = network(*inputs)
    for y, right in zip(fusion_onnx.Session(model, "cpu").run(*inputs), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(y, right.detach(), rtol=1e-4, atol=1e-3)
    assert model.ByteSize() < 1.2 * 4 * 128 * 128 * (2 if what == "branches" else 1)


@pytest.mark.parametrize("n", [5, 128])
def test_an_input_by_the_name_of_the_parameters_stays(n):
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            fusion = create("linear_concatenation", dims=[64, 64], n=n)
            self.one, self.two = FusionLayer(fusion), FusionLayer(fusion)

        def forward(self, a, b, w):
            return self.one(a, b) + self.two(b, a) * w.sum()

    inputs = (torch.randn(3, 64), torch.randn(3, 64), torch.randn(3, 2))
    result = export(Shared(), inputs)
    assert [i.name for i in result.model.graph.input] == ["a", "b", "w"]


def test_a_layer_with_an_input_called_w_and_under_autocast():
    layer = FusionLayer(create("low_rank_concatenation", dims=[4, 4]))
    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    assert export(layer, inputs, input_names=["w", "x"], verify=False).model.graph.input[0].name == "w"
    with torch.autocast("cpu"):
        export(layer, inputs, verify=False)


def test_nothing_is_guessed_where_nothing_was_seen():
    assert single(create("sum"), None, None, None, "y", 18) is None


def test_flat_inputs_reach_the_session_in_order():
    fusion = create("concatenation", dims=[2, 3, 4])
    args = drawn(fusion, 2)
    assert torch.equal(fusion_onnx.Session(export(fusion, args).model, "cpu").run(*flat(args))[0], fusion(*args))
