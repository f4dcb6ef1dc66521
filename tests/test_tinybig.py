"""tinyBIG's names: each gives our class, and tinyBIG's numbers (those of 0.2.1) for tinyBIG's weights."""

import copy
import inspect
import json
import pickle
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import fusion_onnx
from fusion_onnx import FusionError, tinybig

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
    assert fusion.get_dims() == [4, 4]
    assert fusion.to_config()["function_class"] == cls.strategy()
    assert issubclass(cls, tinybig.fusion)
    assert cls._op is strategy._op
    x = [torch.rand(3, 4), torch.rand(3, 4)]
    w = torch.rand(1, fusion.calculate_l()) if fusion.calculate_l() else None
    plain = fusion_onnx.create(cls.strategy(), dims=[4, 4], **cls.tinybig_defaults)
    assert torch.equal(fusion(x, w), plain(x, w))
    for other in (
        fusion_onnx.from_config(fusion.to_config()),
        copy.deepcopy(fusion),
        pickle.loads(pickle.dumps(fusion)),  # noqa: S301 - pickled right here
    ):
        assert torch.equal(other(x, w), fusion(x, w))
        assert other.get_name() == name


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


# --- what tinyBIG's callers rely on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("weighted_summation_fusion", ([4, 4], [1.0, 2.0], "mine"), {"dims": [4, 4]}),
        ("summation_fusion", ([4, 4], "mine", False), {"dims": [4, 4]}),
        ("average_fusion", ([4, 4], "mine", False), {"dims": [4, 4]}),
        ("parameterized_weighted_summation_fusion", ([4, 4], "mine", True), {"dims": [4, 4]}),
        ("concatenation_fusion", ([4, 6], "mine", False), {"dims": [4, 6]}),
        ("metric_fusion", ([4, 4], "max", "mine"), {"dims": [4, 4], "metric": "max"}),
        *((f"{m}_fusion", ("mine", [4, 4]), {"dims": [4, 4]}) for m in ("max", "min", "sum", "mean", "prod", "median")),
        ("l1_norm_fusion", ("mine", [4, 4]), {"dims": [4, 4]}),
        ("l2_norm_fusion", ("mine", [4, 4]), {"dims": [4, 4]}),
        ("parameterized_concatenation_fusion", (3, [4, 6], "mine", True), {"n": 3, "dims": [4, 6]}),
        ("lowrank_parameterized_concatenation_fusion", (3, "mine", 5, [4, 6]), {"r": 3, "n": 5, "dims": [4, 6]}),
        ("hm_parameterized_concatenation_fusion", (2, 5, "mine", 4, [4, 6]), {"p": 2, "q": 5, "n": 4, "dims": [4, 6]}),
        (
            "lphm_parameterized_concatenation_fusion",
            (1, 2, 5, "mine", 4, [4, 6]),
            {"r": 1, "p": 2, "q": 5, "n": 4, "dims": [4, 6]},
        ),
        (
            "dual_lphm_parameterized_concatenation_fusion",
            (1, 2, 5, "mine", 4, [4, 6]),
            {"r": 1, "p": 2, "q": 5, "n": 4, "dims": [4, 6]},
        ),
        (
            "random_matrix_adaption_parameterized_concatenation_fusion",
            (3, "mine", 5, [4, 6]),
            {"r": 3, "n": 5, "dims": [4, 6]},
        ),
    ],
)
def test_positional_parameters_have_tinybigs_order(name, args, expected):
    cls = getattr(tinybig, name)
    fusion = cls(*args)
    order = list(inspect.signature(cls.__init__).parameters)[1 : len(args) + 1]
    assert fusion.get_name() == "mine"
    assert {key: getattr(fusion, key) for key in expected} == expected
    assert cls(**dict(zip(order, args, strict=True))).to_config() == fusion.to_config()
    with pytest.raises(TypeError, match=rf"{name}: too many positional arguments. It takes .*{', '.join(order)}"):
        cls(*args, 1)
    with pytest.raises(FusionError, match=f"{name}: multiple values for argument"):
        cls(*args, **{order[0]: 1})


def test_dims_in_the_place_of_the_name_are_refused():
    with pytest.raises(FusionError, match=r"max_fusion: its name is text; got \[4, 4\].*max_fusion\(dims=\[4, 4\]\)"):
        tinybig.max_fusion([4, 4])
    with pytest.raises(FusionError, match=r"max_fusion has no option 'dmis'. Did you mean 'dims'"):
        tinybig.max_fusion(dmis=[4, 4])


@pytest.mark.parametrize("name", NAMES)
def test_names_and_types_are_tinybigs(name):
    fusion = getattr(tinybig, name)(dims=(4, 4))
    assert fusion.get_name() == name
    assert fusion.dims == fusion.get_dims() == [4, 4]
    assert isinstance(fusion.dims, list)
    assert isinstance(fusion, tinybig.function)
    fusion.dims.append(3)
    assert fusion.get_num() == 2
    with pytest.raises(AttributeError, match="dims is fixed when the fusion is made"):
        fusion.dims = [3, 3]


def test_the_base_class_can_be_made_and_is_abstract(tmp_path):
    fusion = tinybig.fusion([1, 2, 3], "mine", False)
    assert (fusion.get_name(), fusion.dims, fusion.get_num()) == ("mine", [1, 2, 3], 3)
    assert (tinybig.fusion().dims, tinybig.fusion().get_name()) == (None, "base_fusion")
    for call in (fusion.calculate_n, fusion.calculate_l, lambda: fusion([torch.ones(1)], None, "cpu", 3, k=2)):
        with pytest.raises(NotImplementedError, match="fusion does not give"):
            call()

    class Mine(tinybig.fusion):
        def __init__(self, name="mine", *args, **kwargs):
            super().__init__(*args, name=name, **kwargs)

        def calculate_n(self, dims=None, *args, **kwargs):
            return sum(self.dims)

        def calculate_l(self, *args, **kwargs):
            return 0

        def forward(self, x, w=None, device="cpu", *args, **kwargs):
            return self.post_process(x=torch.cat(x, -1), device=device)

    mine = Mine("x", dims=[2, 3], postprocess_function_configs={"function_class": "torch.nn.ReLU", "device": "cpu"})
    assert mine(x=[-torch.ones(1, 2), torch.ones(1, 3)], device="cpu").tolist() == [[0, 0, 1, 1, 1]]
    x = [torch.randn(3, 2), torch.randn(3, 3)]
    result = fusion_onnx.export(mine, (x,), tmp_path / "mine.onnx")  # a forward with *args that nothing is given for
    assert result.verdict.passed
    (y,) = fusion_onnx.Session(tmp_path / "mine.onnx").run(*(t.numpy() for t in x))
    assert torch.equal(torch.from_numpy(y), mine(x))


def test_metric_and_weights_are_where_tinybig_has_them():
    values = torch.tensor([[1.0, 4.0, 3.0], [0.5, -2.0, 1.0]])
    for name, expected in {
        "max": [4, 1], "min": [1, -2], "sum": [8, -0.5], "mean": [8 / 3, -0.5 / 3], "prod": [12, -1],
        "median": [3, 0.5], "l1_norm": [8, 3.5], "l2_norm": [26**0.5, 5.25**0.5],
    }.items():  # fmt: skip
        metric = getattr(tinybig, f"{name}_fusion")().metric
        assert metric.__name__ == f"batch_{name}"
        torch.testing.assert_close(metric(values), torch.tensor(expected, dtype=torch.float32))
        torch.testing.assert_close(metric(values.T, dim=0), metric(values))
        same = tinybig.metric_fusion(dims=[2, 2, 2], metric=metric)  # as a user of tinyBIG would pass it on
        assert torch.equal(same(list(values.T)), getattr(tinybig, f"{name}_fusion")()(list(values.T)))
    assert tinybig.summation_fusion(dims=[2, 2]).weights.tolist() == [1, 1]
    torch.testing.assert_close(tinybig.average_fusion(dims=[2] * 3).weights, torch.full((3,), 1 / 3))
    assert tinybig.weighted_summation_fusion([2, 2], torch.tensor([0.5, 2.0])).weights.tolist() == [0.5, 2.0]
    assert tinybig.parameterized_weighted_summation_fusion([2, 2]).weights is None
    assert not hasattr(tinybig.mean_fusion(), "weights")
    assert not hasattr(tinybig.average_fusion(), "metric")


# --- configs as tinyBIG writes them -----------------------------------------------------------------------------------


def batch_max(x, dim=1):
    return x.max(dim).values


batch_max.__module__ = "tinybig.koala.linear_algebra.metric"


def _dump(path, functions=None, /, **attributes):
    """What tinyBIG's to_config writes: all that a module's `__dict__` holds."""
    module = torch.nn.Module()
    vars(module).update(attributes)
    parameters = dict(vars(module))
    if functions is not None:
        configs = [
            {"function_class": f"{type(f).__module__}.{type(f).__name__}", "function_parameters": dict(vars(f))}
            for f in functions
        ]
        parameters["preprocess_function_configs"] = configs
    return {"function_class": path, "function_parameters": parameters}


def _max(functions=None, **attributes):
    given = {"name": "max_fusion", "device": "cpu", "dims": [4, 4], "require_parameters": False, "metric": batch_max}
    return _dump("tinybig.fusion.metric_fusion.max_fusion", functions, **{**given, **attributes})


@pytest.mark.parametrize("path", ["tinybig.fusion.metric_fusion.", "tinybig.fusion.", "fusion_onnx.tinybig.", ""])
@pytest.mark.parametrize("name", NAMES)
def test_a_config_of_a_file_is_read(name, path):
    config = {"function_class": path + name, "function_parameters": {"dims": [4, 4], "device": "cpu"}, "device": "cpu"}
    for form in (config, json.dumps(config)):
        fusion = tinybig.from_config(form)
        assert type(fusion) is getattr(tinybig, name)
        assert fusion.dims == [4, 4]
    assert tinybig.from_config({"function_class": "max_fusion", "function_parameters": None}).dims is None


def test_a_dump_is_read():
    fusion = tinybig.from_config(_max())
    x = [torch.rand(3, 4), torch.rand(3, 4)]
    assert torch.equal(fusion(x), torch.maximum(*x))
    config = _dump("tinybig.fusion.metric_fusion.metric_fusion", metric=batch_max, name="m", dims=(4, 4))
    fusion = tinybig.from_config(config)
    assert fusion.metric == "max"  # tinyBIG's own: one node of the graph
    assert torch.equal(fusion(x), torch.maximum(*x))
    own = lambda v: v.amax(-1)  # noqa: E731
    config["function_parameters"]["metric"] = own
    assert tinybig.from_config(config).metric is own
    config = _dump("tinybig.fusion.basic_fusion.average_fusion", dims=[4, 4], weights=torch.full((2,), 0.5))
    assert torch.equal(tinybig.from_config(config)(x), (x[0] + x[1]) / 2)
    config = _dump("tinybig.fusion.basic_fusion.weighted_summation_fusion", dims=[4, 4], weights=torch.tensor([0.5, 2]))
    assert torch.equal(tinybig.from_config(config)(x), 0.5 * x[0] + 2 * x[1])


def test_what_layers_among_the_functions_have_learned_comes_along():
    normal = torch.nn.LayerNorm(4, bias=False)
    linear, batch = torch.nn.Linear(4, 4, bias=False), torch.nn.BatchNorm1d(4)
    plain = torch.nn.LayerNorm(4, elementwise_affine=False)
    for tensor in (normal.weight, batch.weight, batch.running_mean, batch.bias):
        torch.nn.init.uniform_(tensor)
    functions = [normal, torch.nn.LeakyReLU(0.3), linear, plain, torch.nn.Softmax(-1)]
    x = [torch.rand(3, 4), torch.rand(3, 4)]
    expected = torch.stack(x)
    for f in functions:
        expected = f(expected)
    torch.testing.assert_close(tinybig.from_config(_max(functions))(x), expected.amax(0))
    (read,) = tinybig.from_config(_max([batch])).preprocess_functions
    assert all(torch.equal(value, batch.state_dict()[key]) for key, value in read.state_dict().items())
    assert read.weight is not batch.weight
    (double,) = tinybig.from_config(_max([torch.nn.LayerNorm(4).double()])).preprocess_functions
    assert double.weight.dtype == torch.float64


def test_the_random_matrices_of_an_adaptation_come_along():
    fabrication = torch.nn.Module()
    fabrication.A, fabrication.B = torch.rand(5, 2), torch.rand(8, 2)
    name = "random_matrix_adaption_parameterized_concatenation_fusion"
    config = _dump(f"tinybig.fusion.{name}", dims=[4, 4], n=5, r=2, require_parameters=True)
    config["function_parameters"]["_modules"] = {"parameter_fabrication": fabrication}
    fusion = tinybig.from_config(config)
    x, w = [torch.rand(3, 4), torch.rand(3, 4)], torch.rand(1, 7)
    matrix = torch.diag(w[0, :5]) @ fabrication.A @ torch.diag(w[0, 5:]) @ fabrication.B.T
    torch.testing.assert_close(fusion(x, w), torch.cat(x, -1) @ matrix.T)
    fabrication.A = fabrication.B = None  # before the first call
    assert tinybig.from_config(config).a.shape == (5, 2)


def _layer(**attributes):
    layer = torch.nn.LayerNorm(4)
    vars(layer).update(attributes)
    return layer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "a fusion's config has the keys function_class and function_parameters.*got NoneType"),
        ([1], "got list"),
        ({}, r"got \[\]"),
        ({"function_class": "max_fusion", "extra": 1}, r"got \['extra', 'function_class'\]"),
        ({"function_class": 3}, "a name and a mapping"),
        ({"function_class": "max_fusion", "function_parameters": [1]}, "a name and a mapping"),
        ("{", "not JSON"),
        ({"function_class": "os.system"}, "unknown fusion 'os.system'"),
        ({"function_class": "os.max_fusion"}, "unknown fusion 'os.max_fusion'"),
        ({"function_class": "fusion_onnx.cli.max_fusion"}, "unknown fusion"),
        ({"function_class": "tinybig.fusion.fusion"}, "unknown fusion"),
        ({"function_class": "tinybig.os.system"}, "unknown fusion"),
        ({"function_class": "max_fusion", "function_parameters": {"dmis": [4]}}, "max_fusion has no option 'dmis'"),
        ({"function_class": "average_fusion", "function_parameters": {"weights": [1]}}, "no option 'weights'"),
        (_max(preprocess_function_configs={"function_class": "builtins.function"}), "whose name it did not keep"),
        (_max(preprocess_function_configs={"function_class": "os.system"}), "unknown function 'os.system'"),
        (_max(preprocess_function_configs=[{"function_class": "torch.nn.modules.module.os"}]), "unknown function"),
        (_max([torch.nn.Sequential(torch.nn.ReLU())]), "unknown function 'torch.nn.Sequential'"),
        (_max([_layer(_forward_hooks={0: print})]), r"LayerNorm: its config holds forward_hooks \[0\]"),
        (_max([_layer(_modules={"part": torch.nn.ReLU()})]), r"holds modules \['part'\]"),
        (_max([_layer(_parameters={"weight_g": torch.ones(4)})]), r"holds \['weight_g'\], where such a layer has"),
        (_max(_forward_hooks={0: print}), r"max_fusion: its config holds forward_hooks \[0\]"),
        (_max(_modules={"part": torch.nn.ReLU()}), r"max_fusion: its config holds modules \['part'\]"),
        (_max(_parameters={"scale": torch.ones(4)}), r"max_fusion: its config holds parameters \['scale'\]"),
        (_max(metric=torch.nn.functional.relu), "max_fusion: its config has the metric relu; take metric_fusion"),
        (
            _dump("average_fusion", dims=[4, 4], name="average_fusion", weights=torch.tensor([0.25, 0.75])),
            r"average_fusion: its config has weights \[0.25, 0.75\]; take weighted_summation_fusion",
        ),
    ],
    ids=range(26),
)
def test_a_config_that_lost_something_or_is_not_tinybigs_is_refused(config, message):
    before = set(sys.modules)
    with pytest.raises(FusionError, match=message):
        tinybig.from_config(config)
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] == "tinybig"}


def test_the_plain_reader_names_the_one_for_tinybigs_configs():
    with pytest.raises(FusionError, match=r"unknown strategy 'tinybig.*fusion_onnx.tinybig.from_config"):
        fusion_onnx.from_config(_max())


def test_a_function_config_that_tinybig_wrote_into_is_taken():
    config = {"function_class": "torch.nn.LeakyReLU", "function_parameters": {"negative_slope": 0.5}, "device": "cpu"}
    for form in (config, [config], (config,)):
        fusion = tinybig.sum_fusion(dims=[1, 1], postprocess_function_configs=form)
        assert fusion([-torch.ones(1), -torch.ones(1)]).tolist() == [-1]
    with pytest.raises(FusionError, match="not both"):
        tinybig.sum_fusion(postprocess_functions="relu", postprocess_function_configs=config)


# --- tinyBIG's own tests, and its own configs -------------------------------------------------------------------------

OWN_TESTS = 40
ON_PURPOSE = {
    "functional_tests.test_concatenation_fusion::test_forward_with_tensor": (
        r"input 1 has last dimension 3, .* where dims=\[2, 2, 2\] asks for 2",
        "other widths than dims: tinyBIG's get_dims() and n are wrong then; here it is refused",
    ),
    "unit_tests.test_basic_fusion::test_weighted_summation_fusion_invalid_weights": (
        r"dims=\[2, 2, 2\] means 3 inputs; got 2",
        "fewer inputs than dims: it asks for an AssertionError, and a breach of the contract is a FusionError",
    ),
    "unit_tests.test_basic_fusion::test_parameterized_weighted_summation_fusion_no_weights": (
        "needs its 3 parameters",
        "no parameters: it asks for an AssertionError, and a breach of the contract is a FusionError",
    ),
    "unit_tests.test_concatenation_fusion::test_post_process_called": (
        r"dims=\[2, 2, 2\] means 3 inputs; got 2",
        "fewer inputs than dims: tinyBIG concatenates what there is, and its n is wrong; here it is refused",
    ),
}
"""tinyBIG's tests that fail here: what is said then, and why it stays so."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of tinyBIG's source distribution."""
    folder = tmp_path_factory.mktemp("tinybig")
    command = "-m pip download --quiet --no-binary :all: --no-deps tinybig==0.2.1 --dest ."
    try:
        pip = subprocess.run(
            [sys.executable, *command.split()], cwd=folder, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        pytest.skip("tinyBIG's source distribution did not come within five minutes")
    archives = list(folder.glob("*.tar.gz"))
    if pip.returncode or not archives:
        last = pip.stderr.strip().splitlines() or ["pip said nothing"]
        pytest.skip(f"tinyBIG's source distribution is not to be had: {last[-1]}")
    with tarfile.open(archives[0]) as archive:
        members = [m for m in archive if re.search(r"^[^/]+/(tinybig|tests)/.*\.py$", m.name)]
        archive.extractall(folder, members=members, filter="data")
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


@pytest.mark.slow
def test_tinybigs_own_tests_pass_here(source, tmp_path):
    for path in sorted(source.glob("tests/*/fusion/test_*.py")):
        text, count = re.subn(r"from tinybig\.[\w.]+ import", "from fusion_onnx.tinybig import", path.read_text())
        assert count == 1
        copied = tmp_path / path.parent.parent.name / path.name
        copied.parent.mkdir(exist_ok=True)
        copied.write_text(text)
    report = tmp_path / "report.xml"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", f"--junitxml={report}", "-c"]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.run(
        [sys.executable, *command, "pytest.ini", "."], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert len(cases) == OWN_TESTS, run.stdout
    outcomes = {f"{case.get('classname')}::{case.get('name')}": "".join(case.itertext()) for case in cases if len(case)}
    assert outcomes.keys() == ON_PURPOSE.keys(), run.stdout
    for name, text in outcomes.items():
        assert re.search(f"FusionError: .*{ON_PURPOSE[name][0]}", text), text


_READ = """
import sys
import torch
from fusion_onnx import tinybig
from fusion_onnx.bench import _tinybig

classes = {k: v for k, v in _tinybig.classes().items() if k in dir(tinybig)}
batch_l2_norm = sys.modules["tinybig.fusion.metric_fusion"].batch_l2_norm
torch.manual_seed(0)
for name, cls in classes.items():
    options = {"p": 2, "q": 4} if "hm_" in name else {}
    options |= {"r": 2} if "lphm" in name else {}
    options |= {"weights": torch.rand(3)} if name == "weighted_summation_fusion" else {}
    options |= {"metric": batch_l2_norm} if name == "metric_fusion" else {}
    layers = [torch.nn.LayerNorm(4), torch.nn.ReLU()]
    torch.nn.init.uniform_(layers[0].weight)
    config = [{"function_class": "torch.nn.Softmax", "function_parameters": {"dim": -1}}]
    theirs = cls(dims=[4, 4, 4], preprocess_functions=layers, postprocess_function_configs=config, **options)
    x = [torch.randn(5, 4) for _ in range(3)]
    w = torch.rand(1, theirs.calculate_l())
    w = w[0] if "summation" in name else w
    expected = theirs(x, w if w.numel() else None)
    ours = tinybig.from_config(theirs.to_config())
    same = dict(name=theirs.get_name(), dims=theirs.get_dims(), num=theirs.get_num(), l=theirs.calculate_l([4] * 3))
    same |= dict(n=theirs.calculate_n([4] * 3), trained=theirs.require_parameters)
    assert same == dict(
        name=ours.get_name(), dims=ours.dims, num=ours.get_num(), l=ours.calculate_l([4] * 3),
        n=ours.calculate_n([4] * 3), trained=ours.require_parameters,
    ), (name, same)
    torch.testing.assert_close(ours(x, w if w.numel() else None), expected)
print("read", len(classes))
"""


@pytest.mark.slow
def test_every_config_that_tinybig_writes_is_read(source):
    code = f"import sys; sys.path.insert(0, {str(source)!r})\n{_READ}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout.strip() == f"read {len(NAMES)}", run.stderr
