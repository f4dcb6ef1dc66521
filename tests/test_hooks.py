"""What a caller puts in place of a fusion's parts: hooks, methods, functions and options that are assigned later."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fusion_onnx
from fusion_onnx import FusionError, FusionLayer, Session, create, export
from fusion_onnx.contract import Fusion
from fusion_onnx.contract.layer import bare_fusion

Sum, Metric = fusion_onnx.get("sum"), fusion_onnx.get("metric")
XS = [torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.25, 4.0, -1.0, 2.0]]), torch.tensor([[2.0, 1.0, -1.0, 0.5]] * 2)]
A, B = XS


class Doubled(Sum):
    def pre_process(self, x, device="cpu"):
        return x * 2


class DoubledRelu(Sum):
    def pre_process(self, x, device="cpu"):
        return super().pre_process(x, device) * 2


class Squared(Sum):
    def post_process(self, x, device="cpu"):
        return x * x


class Centred(Sum):
    """Hands a value from one hook to the other."""

    def __init__(self, dims=None, **base):
        super().__init__(dims, **base)
        self.mean = None

    def pre_process(self, x, device="cpu"):
        self.mean = x.mean()
        return x - self.mean

    def post_process(self, x, device="cpu"):
        return x + self.mean


class Reads(Sum):
    def pre_process(self, x, device="cpu"):
        for f in self.preprocess_functions:
            x = f(x)
        return x + len(self.preprocess_functions)


class Assigns(Sum):
    def __init__(self, dims=None, **base):
        super().__init__(dims, **base)
        self.fuse = lambda xs, w: xs[0] - xs[1]
        self.post_process = lambda y: y * 2
        self.preprocess_functions = "relu"


class Wide(fusion_onnx.get("concatenation")):
    """Sees inputs of unlike shapes one by one."""

    def pre_process(self, x, device="cpu"):
        assert x.ndim == 2
        return x * 2


class Difference(Sum):
    def fuse(self, xs, w, *buffers):
        return xs[0] - xs[1]


class Twice(Sum):
    def fuse(self, xs, w, *buffers):
        return super().fuse(xs, w, *buffers) * 2


class Product(Sum):
    """Both halves anew: a strategy, and nothing that was said of sums is said of it."""

    def fuse(self, xs, w, *buffers):
        return xs[0] * xs[1]

    def decompose(self, op, xs, w, *buffers):
        return op.Mul(*xs)


class Blend(Metric):
    """The forms of `metric` are those of the reduction that it is given by name."""

    def fuse(self, xs, w, *buffers):
        return xs[0] * 2 + xs[1]

    def decompose(self, op, xs, w, *buffers):
        return op.Add(op.Mul(xs[0], op.constant(2)), xs[1])


class Swapped(Sum):
    def decompose(self, op, xs, w, *buffers):
        return op.Add(xs[1], xs[0])


class Shifted(Sum):
    def check_inputs(self, x):
        return [t + 1 for t in super().check_inputs(x)]


class Running(FusionLayer):
    def forward(self, *x):
        return super().forward(*x).cumsum(0)


def assigned(name, value, make=lambda: create("sum", dims=[4, 4])):
    fusion = make()
    setattr(fusion, name, value(fusion) if value.__code__.co_varnames[:1] == ("f",) else value)
    return fusion


def hooked(register, hook, layer=False):
    fusion = create("sum", dims=[4, 4])
    module = FusionLayer(fusion) if layer else fusion
    getattr(module, register)(hook)
    return module


def hooked_function():
    relu = nn.ReLU()
    relu.register_forward_hook(lambda module, args, y: y * 2)
    return create("sum", dims=[4, 4], preprocess_functions=relu)


class Square(nn.Module):
    def forward(self, w):
        return w * w


def parametrized():
    fusion = create("weighted_sum", dims=[4, 4], weights=[1.0, 2.0])
    nn.utils.parametrize.register_parametrization(fusion, "weights", Square())
    return fusion


def parametrized_layer():
    layer = FusionLayer(create("learned_weighted_sum", dims=[4, 4]), init=[1.0, 2.0])
    nn.utils.parametrize.register_parametrization(layer, "w", Square())
    return layer


REPLACED = {
    "pre_process in a class": (lambda: Doubled(dims=[4, 4]), lambda: 2 * A + 2 * B),
    "pre_process that calls super": (
        lambda: DoubledRelu(dims=[4, 4], preprocess_functions="relu"),
        lambda: 2 * A.relu() + 2 * B.relu(),
    ),
    "pre_process decides over functions": (
        lambda: Doubled(dims=[4, 4], preprocess_functions="relu"),
        lambda: 2 * A + 2 * B,
    ),
    "pre_process that reads the functions": (
        lambda: Reads(dims=[4, 4], preprocess_functions=["relu", nn.Tanh()]),
        lambda: A.relu().tanh() + B.relu().tanh() + 4,
    ),
    "pre_process of a layer's fusion": (lambda: FusionLayer(Doubled(dims=[4, 4])), lambda: 2 * A + 2 * B),
    "post_process in a class": (lambda: Squared(dims=[4, 4]), lambda: (A + B) ** 2),
    "both, with a value between them": (
        lambda: Centred(dims=[4, 4]),
        lambda: A + B - torch.stack(XS).mean(),
    ),
    "pre_process of an instance": (
        lambda: assigned("pre_process", lambda x, device="cpu": x * 3),
        lambda: 3 * A + 3 * B,
    ),
    "post_process of an instance, a partial": (
        lambda: assigned("post_process", lambda f: functools.partial(torch.mul, other=torch.tensor(2.0))),
        lambda: 2 * A + 2 * B,
    ),
    "forward of an instance": (
        lambda: assigned("forward", lambda f: lambda x, w=None: Fusion.forward(f, [2 * t for t in x], w)),
        lambda: 2 * A + 2 * B,
    ),
    "fuse of an instance": (lambda: assigned("fuse", lambda xs, w: xs[0] - xs[1]), lambda: A - B),
    "fuse in a class": (lambda: Difference(dims=[4, 4]), lambda: A - B),
    "fuse, hook and functions in the constructor": (
        lambda: Assigns(dims=[4, 4]),
        lambda: 2 * A.relu() - 2 * B.relu(),
    ),
    "fuse that calls super": (lambda: Twice(dims=[4, 4]), lambda: 2 * A + 2 * B),
    "fuse and decompose": (lambda: Product(dims=[4, 4]), lambda: A * B),
    "fuse and decompose of a metric": (lambda: Blend(dims=[4, 4], metric="max"), lambda: 2 * A + B),
    "decompose in a class": (lambda: Swapped(dims=[4, 4]), lambda: A + B),
    "check_inputs in a class": (lambda: Shifted(dims=[4, 4]), lambda: A + B + 2),
    "a forward hook": (
        lambda: hooked("register_forward_hook", lambda module, args, y: y * 2),
        lambda: 2 * A + 2 * B,
    ),
    "a forward pre-hook": (
        lambda: hooked("register_forward_pre_hook", lambda module, args: ([t * 2 for t in args[0]],)),
        lambda: 2 * A + 2 * B,
    ),
    "a layer's forward hook": (
        lambda: hooked("register_forward_hook", lambda module, args, y: y * 2, layer=True),
        lambda: 2 * A + 2 * B,
    ),
    "a function's forward hook": (hooked_function, lambda: 2 * A.relu() + 2 * B.relu()),
    "a layer's forward": (lambda: Running(create("sum", dims=[4, 4])), lambda: (A + B).cumsum(0)),
    "a parametrized buffer": (parametrized, lambda: A + 4 * B),
    "a parametrized layer": (parametrized_layer, lambda: A + 4 * B),
}
ONE_NODE = ("fuse and decompose", "fuse and decompose of a metric", "decompose in a class", "a parametrized buffer")


@pytest.mark.parametrize("what", REPLACED)
def test_what_is_put_in_its_place_is_what_runs_and_what_is_exported(what):
    make, expected = REPLACED[what]
    module = make().eval()
    want = expected()
    torch.testing.assert_close(module(XS), want)
    torch.testing.assert_close(copy.deepcopy(module)(XS), want)
    result = export(module, (XS,))
    assert result.verdict.passed
    torch.testing.assert_close(torch.as_tensor(Session(result.model, "cpu").run(*XS)[0]), want)
    assert (bare_fusion(module) is not None) == (what in (*ONE_NODE, "check_inputs in a class"))
    entrywise = any(p.key == "fusion_onnx.entrywise" for p in result.model.metadata_props)
    assert not entrywise or what in ONE_NODE


@pytest.mark.parametrize("what", [what for what in REPLACED if what.startswith(("pre", "post", "fuse"))])
def test_torch_compile_and_torch_export_see_it_too(what):
    make, expected = REPLACED[what]
    module = make()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(XS), expected())
    torch.testing.assert_close(torch.export.export(make(), (XS,)).module()(XS), expected())


@pytest.mark.parametrize("what", ["pre_process in a class", "forward of an instance", "a forward pre-hook"])
def test_a_network_is_compared_fusion_by_fusion_where_its_fusions_are_called_as_they_are(what):
    network = nn.Sequential(REPLACED[what][0](), nn.ReLU())
    assert fusion_onnx.verify(network, export(network, (XS,)).model, (XS,), battery=True).passed


def test_inputs_of_unlike_shapes_reach_the_hook_one_by_one():
    xs = [torch.ones(2, 3), torch.ones(2, 5)]
    fusion = Wide(dims=[3, 5])
    assert torch.equal(fusion(xs), torch.full((2, 8), 2.0))
    assert torch.equal(torch.as_tensor(Session(export(fusion, (xs,)).model, "cpu").run(*xs)[0]), fusion(xs))


def test_a_hook_that_is_put_on_the_class_later_runs(monkeypatch):
    fusion = create("sum", dims=[4, 4])
    monkeypatch.setattr(Sum, "pre_process", lambda self, x, device="cpu": x * 5, raising=False)
    assert torch.equal(fusion(XS), 5 * A + 5 * B)
    assert torch.equal(torch.as_tensor(Session(export(fusion, (XS,)).model, "cpu").run(*XS)[0]), fusion(XS))


def test_a_fuse_that_is_put_on_the_class_later_is_not_exported_as_the_one_before(monkeypatch):
    fusion = create("sum", dims=[4, 4])
    monkeypatch.setattr(Sum, "fuse", lambda self, xs, w, *buffers: xs[0] - xs[1])
    with pytest.raises(fusion_onnx.ExportError, match=r"SumFusion\.fuse was replaced.*Subclass"):
        export(fusion, (XS,), verify=False)


@pytest.mark.parametrize(
    ("name", "way"),
    [("pre_process", "preprocess_functions"), ("post_process", "postprocess_functions"), ("fuse", "write a method")],
)
def test_a_module_in_a_methods_place_is_refused_where_torch_would_ignore_it(name, way):
    with pytest.raises(AttributeError, match=rf"SumFusion\.{name} is a method.*{way}"):
        setattr(create("sum", dims=[4, 4]), name, nn.Linear(4, 4))


@pytest.mark.parametrize("hook", ["pre_process", "post_process"])
def test_a_hook_that_returns_no_tensor_is_named(hook):
    with pytest.raises(FusionError, match=f"{hook} returns a tensor; it returned NoneType"):
        assigned(hook, lambda x: None)(XS)


def test_nothing_of_another_fuse_is_inherited():
    assert not Difference.is_strategy()
    assert Product.is_strategy()
    for cls in (Difference, Product, Blend):
        assert not cls.has_reference()
        assert not (cls.selects_only or cls.bitwise or cls.entrywise)
        assert cls(dims=[4, 4]).error_bound(None, XS, None) is None
    assert list(Product(dims=[4, 4]).forms()) == ["plain"]
    assert list(Blend(dims=[4, 4], metric="max").forms()) == ["plain"]

    class Vouched(Difference):
        decompose, bitwise = Swapped.decompose, True

        def fuse(self, xs, w, *buffers):
            return xs[1] + xs[0]

    assert Vouched.is_strategy()
    assert Vouched.bitwise
    model = export(Vouched(dims=[4, 4]), (XS,)).model
    assert [node.domain for node in model.graph.node] == ["fusion_onnx"]


# --- functions that are assigned later --------------------------------------------------------------------------------


def with_functions(functions):
    fusion = create("sum", dims=[4, 4])
    fusion.preprocess_functions = functions
    return fusion


def changed(change):
    fusion = create("sum", dims=[4, 4], preprocess_functions=[nn.Tanh(), nn.ReLU()])
    change(fusion.preprocess_functions)
    return fusion


def added(fusion, functions):
    fusion.postprocess_functions += functions
    return fusion


DROPOUT = {
    "a module": lambda drop: with_functions(drop),
    "a list": lambda drop: with_functions(["relu", drop]),
    "appended": lambda drop: changed(lambda functions: functions.append(drop)),
    "in another's place": lambda drop: changed(lambda functions: functions.__setitem__(0, drop)),
    "in a slice": lambda drop: changed(lambda functions: functions.__setitem__(slice(0, 2), [drop])),
    "inserted": lambda drop: changed(lambda functions: functions.insert(0, drop)),
    "extended": lambda drop: changed(lambda functions: functions.extend([drop, "relu"])),
    "added": lambda drop: added(create("sum", dims=[4, 4]), ["relu", drop]),
    "a partial": lambda drop: with_functions([functools.partial(drop)]),
    "a partial of the constructor's": lambda drop: create("sum", preprocess_functions=functools.partial(drop)),
    "a bound method": lambda drop: with_functions([drop.forward]),
    "a bound call": lambda drop: with_functions([functools.partial(drop.__call__)]),
}


@pytest.mark.parametrize("how", DROPOUT)
def test_a_module_that_is_assigned_later_is_registered(how):
    drop = nn.Dropout(0.999)
    fusion = DROPOUT[how](drop)
    assert not torch.equal(fusion(XS), copy.deepcopy(fusion).eval()(XS))
    assert any(module is drop for module in fusion.modules())
    fusion.eval()
    assert not drop.training
    assert torch.equal(fusion(XS), fusion(XS))
    copies = copy.deepcopy(fusion), pickle.loads(pickle.dumps(fusion))  # noqa: S301
    for other in copies:
        assert torch.equal(other(XS), fusion(XS))
        other.train()
        assert not torch.equal(other(XS), fusion(XS))


HIDDEN = {
    "a closure": lambda drop: lambda x: drop(x),
    "a default": lambda drop: lambda x, drop=drop: drop(x),
    "a partial's argument": lambda drop: functools.partial(lambda f, x: f(x), drop),
    "a partial's keyword": lambda drop: functools.partial(lambda x, f: f(x), f=drop),
    "a list in a closure": lambda drop: (lambda fs: lambda x: fs[0](x))([drop]),
    "a network's method": lambda drop: Holder(drop).apply_it,
}


class Holder(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def apply_it(self, x):
        return self.drop(x)


@pytest.mark.parametrize("how", HIDDEN)
def test_a_module_that_nothing_can_register_is_refused_where_eval_missed_it(how):
    drop = nn.Dropout(0.999)
    fusion = with_functions(HIDDEN[how](drop))
    fusion(XS)  # in training, it is as it should be
    with pytest.raises(FusionError, match="holds a Dropout in training mode"):
        fusion.eval()(XS)
    drop.eval()
    assert torch.equal(fusion(XS), A + B)


def test_a_networks_own_method_is_no_child_of_its_fusion():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.999)
            self.fusion = create("sum", preprocess_functions=self.scaled)

        def scaled(self, x):
            return self.drop(x) * 2

        def forward(self, a, b):
            return self.fusion([a, b])

    network = Network().eval().double()  # each walks over the children
    assert torch.equal(network(A.double(), B.double()), (2 * A + 2 * B).double())
    network.train()
    network.fusion.eval()
    network(A, B)  # the network has the say


def test_functions_that_go_are_registered_no_longer():
    fusion = create("sum", dims=[4, 4], preprocess_functions=[nn.Linear(4, 4), "relu"])
    del fusion.preprocess_functions[0]
    assert not list(fusion.modules())[1:]
    assert not fusion.state_dict()
    assert fusion.preprocess_functions == [torch.nn.functional.relu]
    fusion.preprocess_functions = None
    assert fusion.preprocess_functions == []
    assert not fusion.preprocess_functions
    assert torch.equal(fusion(XS), A + B)


def test_config_and_repr_tell_what_was_assigned():
    fusion = create("sum", dims=[4, 4])
    fusion.preprocess_functions = ["relu", nn.LeakyReLU(0.2)]
    fusion.postprocess_functions.append("tanh")
    other = fusion_onnx.from_config(fusion.to_config())
    assert torch.equal(other(XS), fusion(XS))
    assert "LeakyReLU(negative_slope=0.2)" in repr(fusion)


def test_the_keys_of_a_state_dict_are_those_of_the_order_of_modules():
    shared, norm = nn.Linear(4, 4), nn.LayerNorm(4)
    given = [shared, "relu", functools.partial(norm), shared, norm.forward]
    fusion = create("sum", dims=[4, 4], preprocess_functions=given, postprocess_functions=nn.PReLU())
    keys = [f"process_modules.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")]
    keys += ["process_modules.2.weight", "process_modules.3.weight", "process_modules.3.bias"]
    assert list(fusion.state_dict()) == keys
    assert len(list(fusion.parameters())) == 5
    later = create("sum", dims=[4, 4])
    later.postprocess_functions = nn.PReLU()
    later.preprocess_functions = given
    later.load_state_dict(fusion.state_dict())
    assert list(later.state_dict()) == keys


def test_a_module_that_a_tool_replaces_is_the_one_that_runs():
    fusion = create("sum", dims=[4, 4], preprocess_functions=["relu", nn.Linear(4, 4)])
    fusion.process_modules[0] = nn.Identity()
    assert torch.equal(fusion(XS), A.relu() + B.relu())


# --- options that are assigned later ----------------------------------------------------------------------------------

FREE = ("name", "device", "preprocess_functions", "postprocess_functions")
OTHER = {"dims": [9, 9], "weights": [3.0], "product": "outer", "metric": "min", "dtype": "float64", "name": "other"}


@pytest.mark.parametrize("name", fusion_onnx.names())
def test_an_option_is_fixed_or_counts(name):
    for case in fusion_onnx.get(name).cases:
        fusion = case.create(fusion_onnx.get(name))
        config = fusion.to_config()
        for option in fusion.options():
            if option in FREE:
                continue
            with pytest.raises(AttributeError, match=rf"{option} is (fixed when the fusion is made|a buffer of shape)"):
                setattr(fusion, option, OTHER.get(option, 3))
            if option not in fusion._buffers:
                with pytest.raises(AttributeError, match=rf"{option}"):
                    delattr(fusion, option)
        assert fusion.to_config() == config
        fusion.name, fusion.device = "other", torch.device("cpu")
        assert fusion.get_name() == "other"
        parameters = {**config["function_parameters"], "name": "other", "device": "cpu"}
        assert fusion.to_config()["function_parameters"] == parameters


def test_the_error_says_what_to_write():
    fusion = create("low_rank_concatenation", dims=[4, 4], n=3)
    with pytest.raises(
        AttributeError, match=r"LowRankConcatenationFusion\(\.\.\., r=3\).*to_config\(\) with 'r' changed"
    ):
        fusion.r = 3
    config = fusion.to_config()
    config["function_parameters"]["r"] = 3
    assert fusion_onnx.from_config(config).calculate_l() == 3 * (3 + 8)


def test_a_constructor_a_copy_and_a_fusion_with_its_own_forward_set_as_they_like():
    class Scaled(Fusion):
        def __init__(self, dims=None, *, scale=1.0, **base):
            super().__init__(dims, **base)
            self.scale = scale
            self.scale = self.scale * 2

        def calculate_n(self, dims=None):
            return (dims or self.dims)[0]

        def calculate_l(self):
            return 0

        def forward(self, x, w=None, device="cpu"):
            return sum(x) * self.scale

    fusion = Scaled(dims=[4, 4], scale=2.0)
    fusion.scale = 3.0
    assert torch.equal(fusion(XS), (A + B) * 3)
    assert torch.equal(copy.deepcopy(fusion)(XS), (A + B) * 3)


@pytest.mark.parametrize(
    "value", [None, torch.ones(3), torch.ones(1), nn.Parameter(torch.ones(2)), [1.0, 2.0]], ids=lambda v: str(v)[:20]
)
def test_a_buffer_takes_a_tensor_of_its_shape_and_nothing_else(value):
    fusion = create("weighted_sum", dims=[4, 4], weights=[1.0, 2.0])
    with pytest.raises(AttributeError, match=r"weights is a buffer of shape \[2\]"):
        fusion.weights = value
    assert torch.equal(fusion(XS), A + 2 * B)


def test_a_buffer_that_is_assigned_counts():
    fusion = create("weighted_sum", dims=[4, 4], weights=[1.0, 2.0])
    fusion.weights = torch.tensor([3.0, 4.0])
    assert torch.equal(fusion(XS), 3 * A + 4 * B)
    result = export(fusion, (XS,))
    np.testing.assert_array_equal(Session(result.model, "cpu").run(*XS)[0], fusion(XS))
    assert fusion.to_config()["function_parameters"]["weights"] == [3.0, 4.0]


def test_a_buffer_that_is_registered_later_is_no_operand():
    fusion = create("linear_concatenation", dims=[4, 4], n=2)
    layer = FusionLayer(fusion)
    before = layer(XS)
    fusion.register_buffer("step", torch.ones(16))
    assert torch.equal(layer(XS), before)
    np.testing.assert_allclose(
        Session(export(layer, (XS,)).model, "cpu").run(*XS)[0], before.detach(), rtol=1e-6, atol=1e-6
    )


class Offset(Fusion):
    """Keeps a number that is no option: what it is made with is what the torch op knows."""

    equal_dims = True

    def __init__(self, dims=None, **base):
        super().__init__(dims, **base)
        self.offset = 1.0

    def calculate_n(self, dims=None):
        return (dims or self.dims)[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w):
        return self.moved(sum(xs))

    def moved(self, x):
        return x + self.offset

    def decompose(self, op, xs, w):
        return op.Add(op.Sum(*xs), op.constant(1))


@pytest.mark.parametrize(
    ("name", "value", "want"), [("offset", 5.0, A + B + 5), ("moved", lambda x: x * 3, (A + B) * 3)]
)
def test_other_state_of_a_strategy_counts_where_it_is_assigned(name, value, want):
    fusion = Offset(dims=[4, 4])
    torch.testing.assert_close(fusion(XS), A + B + 1)
    setattr(fusion, name, value)
    torch.testing.assert_close(fusion(XS), want)
    result = export(fusion, (XS,))
    torch.testing.assert_close(torch.as_tensor(Session(result.model, "cpu").run(*XS)[0]), want)
    torch.testing.assert_close(Offset(dims=[4, 4])(XS), A + B + 1)


@pytest.mark.parametrize("name", ["decompose", "decompose_variadic"])
def test_a_body_belongs_to_the_class(name):
    with pytest.raises(AttributeError, match=f"{name} belongs to the class; subclass SumFusion"):
        setattr(create("sum", dims=[4, 4]), name, lambda op, xs, w: xs[0])
