"""Configs: plain data that round trips, and that nothing can be smuggled in with."""

import json
import sys

import pytest
import torch

import fusion_onnx
from fusion_onnx import Fusion, FusionError, from_config, registry, to_config


def _config(strategy="sum", /, **parameters):
    return {"function_class": strategy, "function_parameters": parameters}


def test_the_form_of_a_config():
    config = fusion_onnx.create("low_rank_concatenation", dims=[4, 6], n=5, r=3).to_config()
    assert config == _config(
        "low_rank_concatenation",
        dims=[4, 6],
        n=5,
        r=3,
        name="low_rank_concatenation",
        require_parameters=True,
        device="cpu",
    )
    assert to_config(from_config(config)) == config
    assert from_config({"function_class": "sum"}).get_dims() is None
    assert from_config('{"function_class": "max", "function_parameters": {"dims": [2, 2]}}').get_dims() == [2, 2]


def test_preprocess_and_postprocess_travel():
    fusion = fusion_onnx.create(
        "weighted_sum",
        dims=[4, 4],
        name="mine",
        weights=[0.1, -3.0],
        preprocess_functions=["relu", torch.nn.LeakyReLU(0.2)],
        postprocess_functions={"function_class": "softmax", "function_parameters": {"dim": -1}},
    )
    rebuilt = from_config(json.loads(json.dumps(fusion.to_config())))
    x = [torch.randn(3, 4) for _ in range(2)]
    assert torch.equal(rebuilt(x), fusion(x))
    assert rebuilt.to_config() == fusion.to_config()
    assert rebuilt.get_name() == "mine"
    expected = torch.softmax(0.1 * x[0].relu() - 3 * x[1].relu(), -1)
    torch.testing.assert_close(fusion(x), expected)


def test_trained_state_travels_in_the_state_dict():
    fusion = fusion_onnx.create("sum", dims=[4, 4], preprocess_functions=torch.nn.Linear(4, 4))
    rebuilt = from_config(fusion.to_config())
    x = [torch.randn(3, 4) for _ in range(2)]
    rebuilt.load_state_dict(fusion.state_dict())
    assert torch.equal(rebuilt(x), fusion(x))


def test_a_function_without_a_name_has_no_config():
    with pytest.raises(
        FusionError, match=r"<lambda> has no name that a config could hold.*register_function\('my_lambda'"
    ):
        fusion_onnx.create("sum", preprocess_functions=lambda x: x + 1).to_config()


def test_an_option_that_is_not_kept_is_named():
    class ForgetsFusion(Fusion):
        def __init__(self, dims=None, *, colour=1, **base):
            super().__init__(dims, **base)

        def calculate_n(self, dims=None):
            return 1

        def forward(self, x, w=None, device="cpu"):
            return x[0]

    with pytest.raises(FusionError, match=r"option 'colour' is not kept. Assign self.colour in the constructor"):
        ForgetsFusion().to_config()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "a config is a mapping or its JSON text; got NoneType"),
        ([1], "got list"),
        ({}, "a config has the keys function_class and function_parameters"),
        ({"function_class": 3}, "a name and a mapping"),
        ({"function_class": ["sum"]}, "a name and a mapping"),
        ({"function_class": "sum", "function_parameters": [4]}, "a name and a mapping"),
        ({"function_class": "sum", "function_parameters": None}, "a name and a mapping"),
        ({"function_class": "sum", "extra": 1}, r"got \['function_class', 'extra'\]"),
        (_config("summ"), "unknown strategy 'summ'. Did you mean 'sum'"),
        (_config(dims=[0]), "dims are positive whole numbers"),
        (_config(dims="44"), "dims is a list or tuple"),
        (_config(colour="red"), "SumFusion has no option 'colour'"),
        (_config(dims={1, 2}), "is not plain data"),
        (_config(preprocess_functions=torch.relu), "is not plain data"),
        ({"function_class": "sum", 3: 4}, "keys are text; got 3"),
        ("{", "config: not JSON"),
        ("", "config: not JSON"),
        ("[" * 100_000, "config: not JSON|nested at most 16"),
        ('{"function_class": "sum", "function_class": "max"}', "the key 'function_class' stands twice"),
        ('{"function_class": "sum", "function_parameters": {"dims": [2], "dims": [3]}}', "the key 'dims' stands twice"),
        (" " * (1 << 20) + "{}", "at most 1048576 bytes; got 1048578"),
        (_config(name="x" * (1 << 20)), "at most 1048576 bytes"),
        ('"sum"', "a mapping or its JSON text; got str"),
    ],
    ids=range(23),
)
def test_a_bad_config_is_refused(config, message):
    with pytest.raises(FusionError, match=message):
        from_config(config)


def test_the_depth_is_bounded():
    value = "x"
    for _ in range(20):
        value = [value]
    with pytest.raises(FusionError, match="nested at most 16 deep"):
        from_config(_config(dims=value))
    loop = []
    loop.append(loop)
    with pytest.raises(FusionError, match="nested at most 16 deep"):
        from_config(_config(dims=loop))


PATHS = [
    "os.system",
    "torch.hub.load",
    "builtins.eval",
    "tinybig.fusion.metric_fusion.max_fusion",
    "antigravity",
    "fusion_onnx.fusions.sum.SumFusion",
    "fusion_onnx.fusions._kronecker",
    "_kronecker",
    "_folder",
    "__init__",
    "../fusions/sum",
    "SumFusion",
    "",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_class_path_is_refused_and_never_imported(path, monkeypatch):
    def trap(*args, **kwargs):
        raise AssertionError(f"{path} was imported")

    before = set(sys.modules)
    monkeypatch.setattr("os.system", trap)
    monkeypatch.setattr("importlib.import_module", trap)
    with pytest.raises(FusionError, match="unknown strategy"):
        from_config(_config(path, dims=[4, 4]))
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] in ("tinybig", "antigravity")}


@pytest.mark.parametrize(
    "name",
    ["os.system", "torch.hub.load", "torch.load", "builtins.eval", "torch.nn.functional.os", "tinybig.f", "__import__",
     "eval", "torch.nn.Module.__init__", "torch.nn.functional.linear.__globals__", "antigravity", ""],
)  # fmt: skip
@pytest.mark.parametrize("key", ["preprocess_functions", "postprocess_function_configs"])
def test_a_function_off_the_allow_list_is_refused_and_never_imported(key, name, monkeypatch):
    monkeypatch.setattr("os.system", lambda *a: pytest.fail("os.system was called"))
    before = set(sys.modules)
    for value in (name, [name], {"function_class": name, "function_parameters": {}}):
        with pytest.raises(FusionError, match="unknown function"):
            from_config(_config(**{key: value}))
    with pytest.raises(FusionError, match="unknown metric"):
        from_config(_config("metric", metric=name))
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] in ("tinybig", "antigravity")}


def test_a_strategy_of_ones_own_round_trips_once_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    class TwiceTheSumFusion(fusion_onnx.fusions.SumFusion):
        def fuse(self, xs, w, *buffers):
            return 2 * super().fuse(xs, w)

        def decompose(self, op, xs, w, *buffers):
            return op.Mul(super().decompose(op, xs, w), op.constant(2))

    config = TwiceTheSumFusion(dims=[2, 2]).to_config()
    with pytest.raises(FusionError, match=r"unknown strategy 'twice_the_sum'. Did you mean "):
        from_config(config)
    fusion_onnx.register(TwiceTheSumFusion)
    assert from_config(config)([torch.ones(2)] * 2).tolist() == [4, 4]
