"""tinyBIG's names: each gives our class, and tinyBIG's numbers (those of 0.2.1) for tinyBIG's weights."""

import copy
import pickle
import re
import subprocess
import sys
import tarfile

import pytest
import torch

import fusion_onnx
from fusion_onnx import tinybig

NAMES = """
    weighted_summation_fusion summation_fusion sum_fusion average_fusion mean_fusion
    parameterized_weighted_summation_fusion
    metric_fusion max_fusion min_fusion prod_fusion median_fusion l1_norm_fusion l2_norm_fusion concatenation_fusion
    parameterized_concatenation_fusion lowrank_parameterized_concatenation_fusion hm_parameterized_concatenation_fusion
    lphm_parameterized_concatenation_fusion dual_lphm_parameterized_concatenation_fusion
    random_matrix_adaption_parameterized_concatenation_fusion
""".split()  # noqa: SIM905 - twenty names read better so
KRONECKER = [name for name in NAMES if "hm_" in name]


def test_every_name_is_there_and_comes_from_a_class():
    assert {*NAMES, "fusion", "function", "from_config"} == set(dir(tinybig))
    assert (tinybig.fusion, tinybig.function) == (fusion_onnx.Fusion, fusion_onnx.function)
    assert set(NAMES) == {n for name in fusion_onnx.names() for n in fusion_onnx.get(name).tinybig}
    with pytest.raises(AttributeError, match=r"has no 'medain_fusion'; it has .*median_fusion"):
        _ = tinybig.medain_fusion


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_class(name):
    cls = getattr(tinybig, name)
    strategy = fusion_onnx.get(cls.strategy())
    assert issubclass(cls, strategy)
    assert name in strategy.tinybig
    assert cls is getattr(tinybig, name)
    fusion = cls(dims=[4, 4])
    assert (fusion.get_dims(), fusion.dims, fusion.get_name()) == ([4, 4], [4, 4], name)
    assert fusion.to_config()["function_class"] == cls.strategy()
    assert cls._op is strategy._op


@pytest.mark.parametrize("name", KRONECKER)
def test_the_kronecker_names_give_the_outer_product(name):
    cls = getattr(tinybig, name)
    fusion = cls(dims=[4, 8], n=6, p=2)
    assert fusion.product == "outer"
    assert cls(dims=[4, 8], n=6, p=2, product="kronecker").product == "kronecker"
    same = fusion_onnx.create(cls.strategy(), dims=[4, 8], n=6, p=2, product="outer")
    x, w = [torch.randn(3, 4), torch.randn(3, 8)], torch.randn(fusion.calculate_l())
    for other in (
        same,
        fusion_onnx.from_config(fusion.to_config()),
        copy.deepcopy(fusion),
        pickle.loads(pickle.dumps(fusion)),  # noqa: S301 - pickled right here
    ):
        assert torch.equal(other(x, w), fusion(x, w))
    assert cls._op is type(same)._op
    with pytest.raises(fusion_onnx.FusionError, match="has no option 'rank'"):
        cls(dims=[4, 8], n=6, rank=3)


def test_the_outer_product_as_tinybig_writes_it():
    """torch.einsum('pq,st->psqt', A, B).reshape(...) is what its text says; its code reshapes vec(A) vec(B)ᵀ."""
    fusion = tinybig.hm_parameterized_concatenation_fusion(dims=[4, 8], n=6, p=2, q=3)
    w = torch.randn(1, fusion.calculate_l())
    a, b = w[0, :6].reshape(2, 3), w[0, 6:].reshape(3, 4)
    dense = (a.flatten().unsqueeze(1) * b.flatten().unsqueeze(0)).reshape(6, 12)
    x = [torch.randn(5, 4), torch.randn(5, 8)]
    torch.testing.assert_close(fusion(x, w), torch.cat(x, -1) @ dense.T)


def test_a_class_derived_from_a_tinybig_name_is_a_strategy_of_its_own():
    class HalfFusion(tinybig.hm_parameterized_concatenation_fusion):
        def fuse(self, xs, w, *buffers):
            return super().fuse(xs, w) / 2

        def decompose(self, op, xs, w, *buffers):
            return op.Div(super().decompose(op, xs, w), op.constant(2))

    assert HalfFusion.strategy() == "half"
    half, whole = HalfFusion(dims=[4, 4]), tinybig.hm_parameterized_concatenation_fusion(dims=[4, 4])
    assert half.product == "outer"
    x, w = [torch.randn(3, 4) for _ in range(2)], torch.randn(half.calculate_l())
    torch.testing.assert_close(half(x, w), whole(x, w) / 2)


def test_tinybigs_callers_pass_weights_of_shape_1_k():
    fusion = tinybig.parameterized_weighted_summation_fusion(dims=[2, 2])
    assert fusion([torch.ones(2)] * 2, torch.tensor([[1.0, 2.0]])).tolist() == [3, 3]


# --- the habits of tinyBIG's callers ----------------------------------------------------------------------------------


POSITIONAL = {
    "weighted_summation_fusion": ([4, 4], torch.tensor([1.0, 2.0]), "mine"),
    "summation_fusion": ([4, 4], "mine", False),
    "metric_fusion": ([4, 4], "max", "mine"),
    "max_fusion": ("mine", [4, 4]),
    "parameterized_concatenation_fusion": (3, [4, 4], "mine"),
    "lowrank_parameterized_concatenation_fusion": (3, "mine", 6, [4, 4]),
    "hm_parameterized_concatenation_fusion": (3, 2, "mine", 6, [4, 4]),
    "dual_lphm_parameterized_concatenation_fusion": (1, 3, 2, "mine", 6, [4, 4]),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_arguments_by_position_come_in_tinybigs_order(name):
    cls, given = getattr(tinybig, name), POSITIONAL[name]
    fusion = cls(*given)
    assert (fusion.name, fusion.dims) == ("mine", [4, 4])
    order = fusion_onnx.get(cls.strategy()).tinybig[name]
    options = {key: value for key, value in zip(order, given, strict=False) if key not in ("name", "dims")}
    for key, value in options.items():
        got = getattr(fusion, key)
        assert torch.equal(got, value) if isinstance(value, torch.Tensor) else got == value
    with pytest.raises(TypeError, match="multiple values for name"):
        cls(*given, name="twice")
    with pytest.raises(TypeError, match="arguments by position"):
        cls(*given, *given)


INSIDES = {"training": True, "_parameters": {}, "_non_persistent_buffers_set": set(), "_modules": {}, "device": "cpu"}


def batch_median(x):
    return x.median(dim=1).values


@pytest.mark.parametrize(
    ("function_class", "parameters", "same"),
    [
        ("tinybig.fusion.metric_fusion.max_fusion", {"dims": [4, 4], "metric": batch_median}, ("max", {})),
        (
            "tinybig.fusion.metric_fusion.metric_fusion",
            {"dims": [4, 4], "metric": batch_median},
            ("metric", {"metric": "median"}),
        ),
        (
            "tinybig.fusion.basic_fusion.average_fusion",
            {"dims": [4, 4], "weights": torch.tensor([0.5, 0.5])},
            ("mean", {}),
        ),
        (
            "mine.weighted_summation_fusion",
            {"dims": [4, 4], "weights": torch.tensor([1.0, 2.0])},
            ("weighted_sum", {"weights": [1.0, 2.0]}),
        ),
        (
            "tinybig.fusion.summation_fusion",
            {
                "dims": [4, 4],
                "preprocess_function_configs": [
                    {
                        "function_class": "torch.nn.modules.activation.ReLU",
                        "function_parameters": {"training": True, "_buffers": {}, "inplace": False},
                        "device": "cpu",
                    }
                ],
            },
            ("sum", {"preprocess_functions": torch.nn.ReLU()}),
        ),
    ],
)
def test_configs_as_tinybig_writes_them(function_class, parameters, same):
    fusion = tinybig.from_config({"function_class": function_class, "function_parameters": {**INSIDES, **parameters}})
    x = [torch.randn(3, 4), torch.randn(3, 4)]
    assert torch.equal(fusion(x), fusion_onnx.create(same[0], dims=[4, 4], **same[1])(x))


LAYER_NORM = {"function_class": "torch.nn.modules.normalization.LayerNorm"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "a mapping with a function_class"),
        ({"function_class": "os.system"}, "no fusion 'system'"),
        (
            {
                "function_class": "f.max_fusion",
                "function_parameters": {"postprocess_function_configs": {"function_class": "builtins.function"}},
            },
            "lost its name",
        ),
        (
            {
                "function_class": "f.max_fusion",
                "function_parameters": {
                    "postprocess_function_configs": {
                        **LAYER_NORM,
                        "function_parameters": {
                            "normalized_shape": (4,),
                            "_parameters": {"weight": torch.tensor([1.0, 2.0])},
                        },
                    }
                },
            },
            "holds a trained weight",
        ),
    ],
)
def test_configs_that_would_lose_something_are_refused(config, words):
    with pytest.raises(fusion_onnx.FusionError, match=words):
        tinybig.from_config(config)


OWN_TESTS = "tinybig==0.2.1"
BASIC, CONCATENATION = "fusion/test_basic_fusion.py::test_", "fusion/test_concatenation_fusion.py::test_"
LEFT_OUT = {
    f"unit_tests/{BASIC}weighted_summation_fusion_invalid_weights": "fewer inputs than dims has: not an AssertionError",
    f"unit_tests/{BASIC}parameterized_weighted_summation_fusion_no_weights": "w left out: not an AssertionError",
    f"unit_tests/{CONCATENATION}post_process_called": "fewer inputs than dims has: refused",
    f"functional_tests/{CONCATENATION}forward_with_tensor": "other widths than dims has: refused",
}
"""Where a FusionError is raised."""
REDIRECTED = """
import sys, types
from fusion_onnx import tinybig
for name in ("tinybig", "tinybig.module", "tinybig.module.base_fusion", "tinybig.fusion", "tinybig.fusion.basic_fusion",
             "tinybig.fusion.metric_fusion", "tinybig.fusion.concatenation_fusion",
             "tinybig.fusion.parameterized_concatenation_fusion"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    module.__getattr__ = lambda wanted: getattr(tinybig, wanted)
"""


def test_tinybigs_own_tests_of_fusions_pass(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "tinybig",
        OWN_TESTS,
        "-d",
        tmp_path,
    ]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(tmp_path.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"{OWN_TESTS} cannot be fetched here: {fetched.stderr[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.glob("tinybig-*/tests")
    (folder / "conftest.py").write_text(REDIRECTED)
    left_out = [f"--deselect={name}" for name in LEFT_OUT]
    paths = ["unit_tests/fusion", "functional_tests/fusion"]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib", "--rootdir", folder]
    command = [sys.executable, "-m", "pytest", *options, *left_out, *paths]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert re.search(r"^36 passed, 4 deselected", done.stdout, re.M), done.stdout[-3000:]
