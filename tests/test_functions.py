"""Pre- and postprocess functions: every way to give them, the shapes they see, and that modules are reached."""

import copy
import functools

import pytest
import torch

import fusion_onnx
from fusion_onnx import FusionError, function, register_function
from fusion_onnx.contract import callables

X = [torch.tensor([[-1.0, 2.0], [3.0, -4.0]]), torch.tensor([[5.0, -6.0], [-7.0, 8.0]])]
RELU_SUM = [[5.0, 2.0], [3.0, 8.0]]


@pytest.mark.parametrize(
    "given",
    [
        torch.relu,
        "relu",
        "torch.nn.functional.relu",
        "torch.relu",
        "ReLU",
        "torch.nn.ReLU",
        torch.nn.ReLU(),
        lambda x: x.relu(),
        ["relu"],
        (torch.relu, "relu"),
        [["relu"], torch.nn.ReLU()],
        torch.nn.ModuleList([torch.nn.ReLU(), torch.nn.ReLU()]),
        torch.nn.Sequential(torch.nn.ReLU()),
        functools.partial(torch.clamp, min=0),
        {"function_class": "relu"},
        {"function_class": "torch.nn.LeakyReLU", "function_parameters": {"negative_slope": 0}},
        [{"function_class": "hardtanh", "function_parameters": {"min_val": 0, "max_val": 100}}],
    ],
)
def test_every_way_to_give_a_function(given):
    assert fusion_onnx.create("sum", preprocess_functions=given)(X).tolist() == RELU_SUM
    fusion = fusion_onnx.create("concatenation", postprocess_functions=given)
    assert fusion(X).tolist() == torch.cat(X, -1).relu().tolist()
    assert fusion.post_process(X[0]).tolist() == X[0].relu().tolist()
    assert fusion.pre_process(X[0]) is X[0]


def test_given_as_configs():
    configs = [{"function_class": "relu"}, {"function_class": "softmax", "function_parameters": {"dim": -1}}]
    fusion = fusion_onnx.create("sum", preprocess_function_configs=configs)
    assert torch.equal(fusion.pre_process(X[0]), X[0].relu().softmax(-1))
    fusion = fusion_onnx.create("sum", postprocess_function_configs=configs[0])
    assert torch.equal(fusion(X), (X[0] + X[1]).relu())
    for kind in ("preprocess", "postprocess"):
        with pytest.raises(FusionError, match=f"give {kind}_functions or {kind}_function_configs, not both"):
            fusion_onnx.create("sum", **{f"{kind}_functions": "relu", f"{kind}_function_configs": configs})


def test_functions_are_applied_in_order():
    fusion = fusion_onnx.create("sum", preprocess_functions=[lambda x: x + 1, lambda x: x * 2])
    assert fusion.pre_process(torch.tensor([3.0])).item() == 8
    assert fusion([torch.tensor([3.0])]).item() == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rellu", "unknown function 'rellu'. Did you mean .*relu"),
        (3, "a function is a callable, a module, a name, a config, or a list of these; got 3"),
        ([3], "got 3"),
        (torch.nn.ReLU, r"ReLU is a class; give an instance of it: ReLU\(\)"),
        ({"function_class": "softmax", "function_parameters": {"dmi": 1}}, r"softmax: .*'dmi'.*its parameters are \("),
        ({"function_class": "LeakyReLU", "function_parameters": {"slope": 1}}, "LeakyReLU: .*'slope'"),
        ({"function_class": "Linear", "function_parameters": {}}, "Linear: missing a required argument"),
        ({"name": "relu"}, "a function's config is"),
        ({"function_class": "relu", "extra": 1}, "a function's config is"),
        ({"function_class": torch.relu}, "a function's config is"),
    ],
)
def test_a_bad_function_is_refused(given, message):
    with pytest.raises(FusionError, match=message):
        fusion_onnx.create("sum", preprocess_functions=given)


def test_a_function_that_returns_no_tensor_is_named():
    def pair(x):
        return x, x

    with pytest.raises(FusionError, match=r"returns one tensor; pair returned tuple. Wrap it"):
        fusion_onnx.create("sum", preprocess_functions=pair)(X)


class Watch:
    """A function that writes down the shapes it is called with."""

    def __init__(self, function=lambda x: x * 2):
        self.shapes = []
        self.function = function

    def __call__(self, x):
        self.shapes.append(list(x.shape))
        return self.function(x)


def test_inputs_of_one_shape_are_stacked_once():
    watch = Watch()
    y = fusion_onnx.create("sum", preprocess_functions=watch)(X + X[:1])
    assert watch.shapes == [[3, 2, 2]]
    assert torch.equal(y, 2 * (X[0] + X[1] + X[0]))


def test_inputs_of_several_shapes_are_seen_one_by_one():
    watch = Watch()
    x = [torch.ones(3, 4), torch.ones(3, 6)]
    y = fusion_onnx.create("concatenation", preprocess_functions=watch)(x)
    assert watch.shapes == [[3, 4], [3, 6]]
    assert torch.equal(y, torch.full((3, 10), 2.0))


def test_without_a_preprocess_function_nothing_is_stacked(monkeypatch):
    monkeypatch.setattr(torch, "stack", lambda *a, **k: pytest.fail("torch.stack was called"))
    assert fusion_onnx.create("sum")(X).shape == (2, 2)
    assert fusion_onnx.create("max", postprocess_functions="relu")(X).shape == (2, 2)


def test_the_output_is_postprocessed_once():
    watch = Watch()
    fusion_onnx.create("concatenation", postprocess_functions=watch)(X)
    assert watch.shapes == [[2, 4]]


def test_what_preprocessing_makes_is_checked_too():
    with pytest.raises(FusionError, match=r"stacked along a new first axis, and keep it; \[2, 2, 2\] became \[8\]"):
        fusion_onnx.create("sum", preprocess_functions="flatten")(X)
    with pytest.raises(FusionError, match=r"became \[1, 2, 2\]"):
        fusion_onnx.create("sum", preprocess_functions=lambda x: x[:1])(X)
    with pytest.raises(FusionError, match="inputs are floating"):
        fusion_onnx.create("sum", preprocess_functions=lambda x: x > 0)(X)
    with pytest.raises(FusionError, match=r"has last dimension 5, .* where dims=\[2, 2\] asks for 2"):
        fusion_onnx.create("sum", dims=[2, 2], preprocess_functions=torch.nn.Linear(2, 5))(X)
    assert fusion_onnx.create("sum", preprocess_functions=torch.nn.Linear(2, 5))(X).shape == (2, 5)


def test_modules_are_registered():
    linear, norm = torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
    fusion = fusion_onnx.create("sum", preprocess_functions=[linear, "relu"], postprocess_functions=norm)
    net = torch.nn.Sequential()
    net.add_module("fusion", fusion)
    assert {linear, norm} <= set(net.modules())
    assert any(p is linear.weight for p in net.parameters())
    assert len(net.state_dict()) == len(linear.state_dict()) + len(norm.state_dict())
    net.eval()
    assert not norm.training
    net.double()
    assert linear.weight.dtype == torch.float64
    assert fusion([x.double() for x in X]).dtype == torch.float64
    net.train()
    fusion([x.double() for x in X]).sum().backward()
    assert linear.weight.grad is not None
    assert norm.num_batches_tracked == 1


def test_a_copy_has_modules_of_its_own():
    fusion = fusion_onnx.create("sum", preprocess_functions=torch.nn.Linear(2, 2))
    before, other = fusion(X), copy.deepcopy(fusion)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not other(X).any()
    assert torch.equal(fusion(X), before)


def test_dropout_follows_train_and_eval():
    fusion = fusion_onnx.create("sum", preprocess_functions=torch.nn.Dropout(0.999))
    x = [torch.ones(100)]
    assert (fusion(x) == 0).any()
    assert torch.equal(fusion.eval()(x), x[0])


@pytest.mark.parametrize("strategy", ["sum", "concatenation", "median"])
def test_processed_fusions_compile_and_export(strategy):
    fusion = fusion_onnx.create(
        strategy, dims=[2, 2], preprocess_functions=torch.nn.Linear(2, 2), postprocess_functions="tanh"
    )
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(fusion, fullgraph=True, backend="aot_eager")(X), fusion(X))
    program = torch.export.export(fusion, (X,))
    assert sum(f"fusion_onnx.{strategy}" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(X), fusion(X))


# --- names ------------------------------------------------------------------------------------------------------------


ARGUMENTS = {
    "layer_norm": {"normalized_shape": [4]},
    "rms_norm": {"normalized_shape": [4]},
    "threshold": {"threshold": 0.1, "value": 2.0},
}


@pytest.mark.parametrize("name", callables._FUNCTIONAL + callables._TORCH)
def test_every_listed_name_is_a_function(name):
    assert callable(callables.lookup(name))
    config = {"function_class": name, "function_parameters": ARGUMENTS.get(name, {})}
    (one,) = callables.resolve(config)
    assert callables.to_config(one)["function_parameters"] == config["function_parameters"]
    (again,) = callables.resolve(callables.to_config(one))
    assert callables.to_config(again) == callables.to_config(one)
    if not config["function_parameters"]:
        assert one is again is callables.lookup(name)


MODULES = {
    "BatchNorm1d": {"num_features": 4, "eps": 0.1},
    "BatchNorm2d": {"num_features": 4, "affine": False},
    "Conv1d": {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": "same", "bias": False},
    "Conv2d": {"in_channels": 2, "out_channels": 4, "kernel_size": [3, 1], "stride": 2, "groups": 2},
    "ELU": {"alpha": 0.5},
    "Flatten": {"start_dim": 2},
    "GELU": {"approximate": "tanh"},
    "GroupNorm": {"num_groups": 2, "num_channels": 4},
    "LayerNorm": {"normalized_shape": [4], "bias": False},
    "LeakyReLU": {"negative_slope": 0.3},
    "Linear": {"in_features": 4, "out_features": 3, "bias": False},
    "PReLU": {"num_parameters": 4, "init": 0.3},
    "RMSNorm": {"normalized_shape": [4]},
    "Softmax": {"dim": -1},
    "Threshold": {"threshold": 0.1, "value": 2.0},
    "Unflatten": {"dim": -1, "unflattened_size": [2, 2]},
}


@pytest.mark.parametrize("name", callables._MODULES)
def test_every_listed_module_round_trips(name):
    (module,) = callables.resolve({"function_class": name, "function_parameters": MODULES.get(name, {})})
    config = callables.to_config(module)
    (again,) = callables.resolve(config)
    assert type(again) is type(module) is getattr(torch.nn, name)
    assert repr(again) == repr(module)
    assert callables.to_config(again) == config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


def test_a_registered_function_has_a_name(monkeypatch):
    monkeypatch.setattr(callables, "_registered", {})

    def double(x):
        return 2 * x

    class Shift(torch.nn.Module):
        def __init__(self, by=1.0):
            super().__init__()
            self.by = by

        def forward(self, x):
            return x + self.by

    assert register_function("double", double) is double
    register_function("double", double)
    register_function("Shift", Shift)
    fusion = fusion_onnx.create("sum", preprocess_functions=["double", Shift(3.0)])
    again = fusion_onnx.from_config(fusion.to_config())
    assert torch.equal(again(X), 2 * X[0] + 3 + (2 * X[1] + 3))
    with pytest.raises(FusionError, match="the name is taken"):
        register_function("double", torch.relu)
    with pytest.raises(FusionError, match="the name is taken"):
        register_function("relu", double)
    with pytest.raises(FusionError, match="is not callable"):
        register_function("three", 3)

    register_function("spread", lambda v: v.amax(-1) - v.amin(-1))
    metric = fusion_onnx.create("metric", metric="spread")
    assert fusion_onnx.from_config(metric.to_config())(X).tolist() == [[6, 8], [10, 12]]


def test_the_small_base():
    class Halve(function):
        def forward(self, x):
            return x / 2

    halve = Halve("halve", "cpu")
    assert (halve.get_name(), halve.name, halve.device) == ("halve", "halve", "cpu")
    assert halve(torch.ones(1)).item() == 0.5
    assert halve.to_config() == {"function_class": "Halve", "function_parameters": {"name": "halve", "device": "cpu"}}
    assert function.func_x(X[0], [halve, "relu"], device="cpu").tolist() == [[0, 1], [1.5, 0]]
    assert function.func_x(X[0], None) is X[0]
    assert function.str_func_x(X[0], "neg").tolist() == (-X[0]).tolist()
    assert function.functions_to_configs("relu") == {
        "function_class": "torch.nn.functional.relu",
        "function_parameters": {},
    }
    assert [c["function_class"] for c in function.functions_to_configs([torch.tanh, torch.nn.Tanh()])] == [
        "torch.tanh",
        "torch.nn.Tanh",
    ]
    assert function.functions_to_configs(None) is None


def test_the_helpers_take_tinybigs_keywords():
    x = -torch.ones(2)
    for func in ("leaky_relu", torch.nn.functional.leaky_relu):
        assert function.str_func_x(x, func, "cpu", negative_slope=0.5).tolist() == [-0.5, -0.5]
    with pytest.raises(FusionError, match="leaky_relu: got an unexpected keyword argument 'slope'"):
        function.str_func_x(x, "leaky_relu", slope=0.5)
    config = {"name": "torch.nn.ReLU", "options": {}}
    assert function.functions_to_configs(torch.nn.ReLU(), "name", parameter_name="options") == config
    assert function.functions_to_configs([torch.nn.ReLU()] * 2, "name", "options") == [config] * 2
    assert function.functions_to_configs(None, "name") is None
