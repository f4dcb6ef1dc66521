"""Export: any module with fusions in it, as readable, deterministic, verified ONNX; bad input leaves nothing behind."""

import json
import os

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import fusion_onnx
from fusion_exporters.exporter import OPSETS
from fusion_onnx import ExportError, FusionError, FusionLayer, create, export
from tests.conftest import on_gpu

DTYPES = [torch.float32, torch.float64, torch.float16]
GRID = [
    pytest.param(name, case, dtype, id=f"{name}-{i}-{str(dtype).removeprefix('torch.')}")
    for name in fusion_onnx.names()
    for i, case in enumerate(fusion_onnx.get(name).cases)
    for dtype in (DTYPES if i == 0 else DTYPES[:1])  # no rule couples a width with a dtype
]


def drawn(fusion, batch, dtype=torch.float32, rank=2, seed=0):
    """Return inputs and parameters for a fusion: (xs,) or (xs, w)."""
    generator = torch.Generator().manual_seed(seed + batch)
    lead = [batch] + [2] * (rank - 2) if rank > 1 else []
    xs = [torch.randn(*lead, d, generator=generator).to(dtype) for d in fusion.dims]
    length = fusion.calculate_l()
    w = torch.randn(length, generator=torch.Generator().manual_seed(7)).to(dtype)
    return (xs, w) if length else (xs,)


def flat(args):
    xs, *w = args
    return [*xs, *w]


class Net(torch.nn.Module):
    """Two branches, a projecting fusion, a selection, a weighted sum, and a preprocess function."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left = torch.nn.Linear(4, 6)
        self.right = torch.nn.Linear(3, 6)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[6, 6], n=5, preprocess_functions="relu"))
        self.pick = create("median", dims=[5, 5, 5])
        self.mix = create("weighted_sum", dims=[5, 5], weights=[0.1, 0.2])

    def forward(self, left, right):
        h = self.merge(self.left(left), self.right(right))
        return self.mix([self.pick([h, 2 * h, 3 * h]), h])


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def views():
    return torch.randn(4, 4), torch.randn(4, 3)


@pytest.mark.parametrize(("name", "case", "dtype"), GRID)
def test_every_strategy_at_every_case_and_every_dtype_runs_as_eager_does(name, case, dtype, tmp_path):
    fusion = case.create(fusion_onnx.get(name))
    result = export(fusion, drawn(fusion, 3, dtype), tmp_path / "fusion.onnx")
    assert result.verdict.passed
    (node,) = result.model.graph.node
    assert node.domain == "fusion_onnx"
    assert node.op_type.startswith(name)
    session = fusion_onnx.Session(result.path, "cpu")
    for batch in (0, 1, 5):
        args = drawn(fusion, batch, dtype, seed=1)
        (y,) = session.run(*flat(args))
        expected = fusion(*args)
        assert y.dtype == expected.dtype
        assert y.shape == expected.shape
        if fusion.bitwise:
            assert torch.equal(y, expected)
        else:
            torch.testing.assert_close(y, expected)
    if dtype == torch.float32:
        check_reference(result.model, args, expected)


def check_reference(model, args, expected):
    """The functions, and what is left of them after inlining, give the same numbers in onnx.reference."""
    standard = onnx.inliner.inline_local_functions(model)
    assert {n.domain for n in standard.graph.node} == {""}
    for candidate in (model, standard):
        feed = {i.name: t.numpy() for i, t in zip(model.graph.input, flat(args), strict=True)}
        (y,) = ReferenceEvaluator(candidate).run(None, feed)
        np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", fusion_onnx.names())
def test_inline_all_leaves_standard_operators_only(name):
    fusion = fusion_onnx.get(name).cases[0].create(fusion_onnx.get(name))
    args = drawn(fusion, 3)
    result = export(fusion, args, inline="all")
    assert result.verdict.passed
    assert {n.domain for n in result.model.graph.node} == {""}
    assert not result.model.functions
    assert [o.domain for o in result.model.opset_import] == [""]
    assert all(n.name.startswith(f"{name}/") for n in result.model.graph.node)


@pytest.mark.parametrize("opset", OPSETS)
def test_opsets(net, views, opset):
    result = export(net, views, opset=opset)
    assert result.verdict.passed
    assert {o.domain: o.version for o in result.model.opset_import} == {"": opset, "fusion_onnx": 1}
    assert {o.version for f in result.model.functions for o in f.opset_import} == {opset}


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "name", ["sum", "concatenation", "kronecker_concatenation", "low_rank_kronecker_concatenation"]
)
def test_ranks(name, rank):
    fusion = create(name, dims=[4, 4, 4]) if name != "concatenation" else create(name, dims=[4, 3])
    result = export(fusion, drawn(fusion, 3, rank=rank))
    assert result.verdict.passed
    session = fusion_onnx.Session(result.model, "cpu")
    for batch in (1, 0) if rank > 1 else (1,):
        args = drawn(fusion, batch, rank=rank)
        torch.testing.assert_close(session.run(*flat(args))[0], fusion(*args))


def test_outer_product_with_higher_rank_and_an_empty_batch():
    for p, q, n in ((2, 6, 4), (3, 2, 12), (3, 3, 6)):
        fusion = create("kronecker_concatenation", dims=[8, 4] if q != 3 else [4, 2], n=n, p=p, q=q, product="outer")
        result = export(fusion, drawn(fusion, 3, rank=3))
        args = drawn(fusion, 0, rank=3)
        assert fusion_onnx.Session(result.model, "cpu").run(*flat(args))[0].shape == fusion(*args).shape


def test_a_network_reads_well(net, views, tmp_path):
    result = export(net, views, tmp_path / "net.onnx")
    graph = result.model.graph
    fusions = {n.name: n for n in graph.node if n.domain == "fusion_onnx"}
    assert set(fusions) == {"merge", "pick", "mix"}
    assert fusions["merge"].op_type == "low_rank_concatenation_6_6_n5_r2"
    assert list(fusions["merge"].input)[-1] == "merge.w"
    assert fusions["pick"].op_type == "median_k3"
    assert [i.name for i in graph.input] == ["left", "right"]
    assert [o.name for o in graph.output] == ["y"]
    config = json.loads(next(a.s for a in fusions["merge"].attribute if a.name == "config"))
    assert config["function_class"] == "low_rank_concatenation"
    body = next(f for f in result.model.functions if f.name == "median_k3")
    assert {n.op_type for n in body.node} == {"Min", "Max"}
    assert all(n.name for f in result.model.functions for n in f.node)


def test_metadata_holds_configs_version_and_verdict(net, views):
    props = {p.key: p.value for p in export(net, views).model.metadata_props}
    configs = json.loads(props["fusion_onnx.fusions"])
    assert set(configs) == {"merge.fusion", "pick", "mix"}
    for config in configs.values():
        assert fusion_onnx.from_config(config).to_config() == config
    assert props["fusion_onnx.version"] == fusion_onnx.__version__
    verification = json.loads(props["fusion_onnx.verification"])
    assert verification["passed"] is True
    assert len(verification["cases"]) == 4


def test_nothing_of_this_machine_is_in_the_file(net, views):
    data = export(net, views).model.SerializeToString()
    assert os.path.dirname(__file__).encode() not in data
    assert b"stack_trace" not in data


def test_structured_concatenations_never_form_their_matrix():
    for name in ("low_rank_concatenation", "kronecker_concatenation", "random_matrix_adaptation"):
        fusion = create(name, dims=[64, 64], n=128, **({"p": 8} if name.startswith("kron") else {}))
        model = export(fusion, drawn(fusion, 3), inline="all", verify=False).model
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value in inferred.graph.value_info:
            sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
            assert np.prod([s for s in sizes if s]) < 128 * 128, value.name


def test_the_same_model_gives_the_same_bytes(net, views, tmp_path):
    one, two = (export(net, views, tmp_path / f"{i}.onnx").path.read_bytes() for i in (1, 2))
    assert one == two


def test_training_mode_is_exported_as_eval_and_restored():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4))
    module[1].eval()
    result = export(module, (torch.randn(3, 4),))
    assert result.verdict.passed
    assert [part.training for part in module] == [True, False, True]


def test_shared_layer_shared_function():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.merge = FusionLayer(create("learned_weighted_sum", dims=[4, 4]))

        def forward(self, a, b):
            return self.merge(self.merge(a, b), b)

    model = export(Twice(), (torch.randn(2, 4), torch.randn(2, 4))).model
    assert [n.name for n in model.graph.node if n.domain] == ["merge", "merge_2"]
    assert len(model.functions) == 1


def test_containers_of_inputs_and_outputs():
    class Dict(torch.nn.Module):
        def forward(self, views, scale):
            return {"total": (views["a"] + views["b"]) * scale, "a": views["a"] * 2}

    result = export(Dict(), ({"a": torch.randn(2, 4), "b": torch.randn(2, 4)}, torch.randn(2, 4)))
    assert [i.name for i in result.model.graph.input] == ["views_a", "views_b", "scale"]
    assert [o.name for o in result.model.graph.output] == ["total", "a"]


def test_a_callable_metric_is_traced_as_ordinary_operators():
    fusion = create("metric", metric=lambda v: v.logsumexp(-1))
    result = export(fusion, ([torch.randn(3, 4), torch.randn(3, 4)],))
    assert result.verdict.passed
    assert {n.domain for n in result.model.graph.node} == {""}


def test_a_forward_of_ones_own_is_traced():
    class Plain(fusion_onnx.Fusion):
        def calculate_n(self, dims=None):
            return self.dims[0]

        def calculate_l(self):
            return 0

        def forward(self, x, w=None, device="cpu"):
            return x[0] * 2 + x[1]

    result = export(Plain(dims=[4, 4]), ([torch.randn(3, 4), torch.randn(3, 4)],))
    assert result.verdict.passed
    assert {n.domain for n in result.model.graph.node} == {""}


def test_postprocess_and_several_preprocess_functions():
    fusion = create(
        "mean", dims=[4, 4], preprocess_functions=["tanh", torch.nn.ReLU()], postprocess_functions=torch.exp
    )
    result = export(fusion, drawn(fusion, 3))
    assert result.verdict.passed
    assert [n.op_type for n in result.model.graph.node][-1] == "Exp"


def test_nan_and_inf_pass_through():
    for name in ("median", "max", "l2_norm", "low_rank_concatenation", "prod"):
        fusion = create(name, dims=[3, 3, 3])
        args = drawn(fusion, 4)
        args[0][1][2, 1] = float("nan")
        args[0][0][0, 0] = float("inf")
        result = export(fusion, args)
        assert result.verdict.passed
        assert torch.isnan(fusion_onnx.Session(result.model, "cpu").run(*flat(args))[0]).any()


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_the_examples_batch_size_is_never_baked_in(batch):
    fusion = create("concatenation", dims=[2, 3])
    session = fusion_onnx.Session(export(fusion, drawn(fusion, batch)).model, "cpu")
    assert session.run(*drawn(fusion, 11)[0])[0].shape == (11, 5)
    assert session.inputs[0].shape == ("batch", 2)


def test_dynamic_axes_by_name_and_none_at_all():
    fusion = create("sum")
    xs = [torch.randn(2, 5, 4), torch.randn(2, 5, 4)]
    result = export(fusion, (xs,), dynamic={"x1": {0: "batch", 1: "time"}, "x2": {0: "batch", 1: "time"}})
    (y,) = fusion_onnx.Session(result.model, "cpu").run(torch.ones(3, 7, 4), torch.ones(3, 7, 4))
    assert y.shape == (3, 7, 4)
    static = export(fusion, (xs,), dynamic=None)
    with pytest.raises(fusion_onnx.InputError):
        fusion_onnx.Session(static.model, "cpu").run(torch.ones(3, 5, 4), torch.ones(3, 5, 4))


class Baked(torch.nn.Module):
    def forward(self, x):
        return x.reshape(4, 6) * 2


def xs(*shapes, dtype=torch.float32):
    return [torch.randn(*shape).to(dtype) for shape in shapes]


SAME = torch.randn(3, 4)
BAD = {
    "an axis fixed by the module": (Baked(), (torch.randn(4, 6),), {}, (ExportError,), "dynamic|size"),
    "aliased inputs": (create("sum"), ([SAME, SAME],), {}, (ExportError,), "same tensor"),
    "no inputs": (create("sum"), ([],), {}, (ExportError, FusionError), "no tensor"),
    "wrong k": (create("sum", dims=[4, 4]), (xs((3, 4)),), {}, (FusionError,), "2 inputs"),
    "wrong width": (create("sum", dims=[4, 4]), (xs((3, 4), (3, 5)),), {}, (FusionError,), "dimension 5"),
    "mixed dtypes": (create("sum"), ([*xs((3, 4)), *xs((3, 4), dtype=torch.float64)],), {}, (FusionError,), "dtype"),
    "integers": (create("sum"), (xs((3, 4), (3, 4), dtype=torch.int64),), {}, (FusionError,), "floating"),
    "w missing": (create("low_rank_concatenation", dims=[4, 4]), (xs((3, 4), (3, 4)),), {}, (FusionError,), "w of"),
    "w too long": (
        create("learned_weighted_sum", dims=[4, 4]),
        (xs((3, 4), (3, 4)), torch.ones(3)),
        {},
        (FusionError,),
        r"\(2,\)",
    ),
    "an opset too old": (create("sum"), (xs((3, 4), (3, 4)),), {"opset": 9}, (ExportError,), "18"),
    "inline misspelt": (create("sum"), (xs((3, 4), (3, 4)),), {"inline": "some"}, (ExportError,), "none"),
    "dynamic misnamed": (create("sum"), (xs((3, 4), (3, 4)),), {"dynamic": {"z": {0: "b"}}}, (ExportError,), "x1"),
    "no module": (lambda x: x, (torch.ones(2),), {}, (ExportError,), "torch.nn.Module"),
    "a misspelt keyword": (create("sum"), (xs((3, 4), (3, 4)),), {"opsett": 18}, (TypeError,), "opsett"),
    "too many names": (create("sum"), (xs((3, 4), (3, 4)),), {"input_names": ["a"]}, (ExportError,), "x1"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_clear_error_and_leaves_nothing_behind(what, tmp_path):
    module, args, options, errors, message = BAD[what]
    with pytest.raises(errors, match=message):
        export(module, args, tmp_path / "x.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_the_target_must_be_a_new_file_in_a_folder_that_exists(tmp_path):
    fusion = create("sum")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export(fusion, (xs((3, 4), (3, 4)),), tmp_path / "no" / "x.onnx")
    path = tmp_path / "x.onnx"
    path.write_bytes(b"keep me")
    with pytest.raises(FileExistsError, match="overwrite"):
        export(fusion, (xs((3, 4), (3, 4)),), path)
    assert path.read_bytes() == b"keep me"
    export(fusion, (xs((3, 4), (3, 4)),), path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_a_model_that_differs_is_not_written(tmp_path, monkeypatch):
    cls = fusion_onnx.get("max")
    monkeypatch.setattr(cls, "decompose", lambda self, op, xs, w: op.Add(xs[0], xs[1]))
    with pytest.raises(fusion_onnx.VerificationError, match="differs") as caught:
        export(cls(dims=[4, 4]), (xs((3, 4), (3, 4)),), tmp_path / "x.onnx")
    assert not caught.value.verdict.passed
    assert not list(tmp_path.iterdir())


def test_bfloat16_says_that_the_cpu_cannot_verify_it_and_exports_without(tmp_path):
    fusion = create("mean", dims=[4, 4])
    args = (xs((3, 4), (3, 4), dtype=torch.bfloat16),)
    with pytest.raises(ExportError, match=r"bfloat16.*verify=False"):
        export(fusion, args, tmp_path / "x.onnx")
    model = export(fusion, args, verify=False).model
    assert [i.type.tensor_type.elem_type for i in model.graph.input] == [onnx.TensorProto.BFLOAT16] * 2


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "case", "dtype"), on_gpu(GRID))
def test_on_cuda(name, case, dtype):
    fusion = case.create(fusion_onnx.get(name))
    args = drawn(fusion, 3, dtype)
    model = export(fusion, args, verify=False, providers="cuda").model
    session = fusion_onnx.Session(model, "cuda")
    for batch in (0, 1, 5):
        args = drawn(fusion, batch, dtype)
        torch.testing.assert_close(session.run(*flat(args))[0], fusion(*args))


class Branch(torch.nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return x * 2 if x.shape[0] > self.limit else x


class One(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 1 else x + 1


@pytest.mark.parametrize("module", [Branch(100), Branch(3), One()])
def test_a_branch_on_the_batch_size_is_never_baked_in_silence(module, tmp_path):
    with pytest.raises(ExportError, match=r"larger than 100|smaller than 4|differs"):
        export(module, (torch.randn(5, 4),), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_axes_that_the_module_makes_equal_want_one_name():
    axes = {"x1": {0: "a"}, "x2": {0: "b"}}
    with pytest.raises(ExportError, match="came out as one"):
        export(create("sum"), (xs((3, 4), (3, 4)),), dynamic=axes)


def test_a_module_with_no_fixed_result_is_refused():
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.5, True)

    with pytest.raises(ExportError, match="different results"):
        export(Noisy(), (torch.randn(5, 4),))


def test_a_module_that_makes_float32_of_its_own_is_followed_in_float64():
    class Single(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, torch.zeros(x.shape[0], 3)], -1) @ torch.ones(7, 2)

    result = export(Single(), (torch.randn(5, 4),))
    assert result.verdict.passed
    assert "cannot be run in float64" not in result.verdict.rule


def test_layers_and_star_arguments_and_mappings_as_the_only_argument():
    layer = FusionLayer(create("low_rank_concatenation", dims=[4, 6], n=5))
    result = export(layer, (torch.randn(3, 4), torch.randn(3, 6)))
    assert [i.name for i in result.model.graph.input] == ["x1", "x2"]
    assert fusion_onnx.Session(result).run(torch.randn(7, 4), torch.randn(7, 6))[0].shape == (7, 5)

    class Views(torch.nn.Module):
        def forward(self, views):
            return views["a"] + views["b"]

    assert export(Views(), ({"a": torch.randn(3, 4), "b": torch.randn(3, 4)},)).verdict.passed


def test_inputs_may_have_the_names_that_outputs_have_by_default():
    class Named(torch.nn.Module):
        def forward(self, y, w):
            return y + w

    model = export(Named(), tuple(xs((3, 4), (3, 4)))).model
    assert [o.name for o in model.graph.output] == ["output_y"]
    with pytest.raises(ExportError, match="names of inputs"):
        export(Named(), tuple(xs((3, 4), (3, 4))), output_names=["w"])


class ScaledFusion(fusion_onnx.Fusion):
    """Options that no name can tell apart, and a decomposition to break."""

    equal_dims = True
    cases = (fusion_onnx.Case(dims=(4, 4)),)

    def __init__(self, dims=None, *, table=(1.0, 2.0), **base):
        super().__init__(dims, **base)
        self.table = list(table)

    def calculate_n(self, dims=None):
        return (dims or self.dims)[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w):
        return xs[0] * self.table[0] + xs[1] * self.table[1]

    def decompose(self, op, xs, w):
        return op.Add(op.Mul(xs[0], op.constant(self.table[0])), op.Mul(xs[1], op.constant(self.table[1])))


@pytest.mark.parametrize("inline", ["none", "all"])
def test_two_fusions_of_one_class_with_other_options_have_bodies_of_their_own(inline):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = ScaledFusion([4, 4], table=[1.5, 2.0])
            self.b = ScaledFusion([4, 4], table=[3.0, 0.2])

        def forward(self, x, z):
            return self.a([x, z]) - self.b([x, z])

    assert export(Both(), tuple(xs((3, 4), (3, 4))), inline=inline).verdict.passed


class AverageFusion(ScaledFusion):
    """A body that depends on the widths, which no name tells where `dims` may be left out."""

    def fuse(self, xs, w):
        return (xs[0] + xs[1]) / xs[0].shape[-1]

    def decompose(self, op, xs, w):
        return op.Div(op.Add(*xs), op.constant(self.dims[0]))


def test_what_no_name_tells_makes_another_body():
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = AverageFusion([2, 2]), AverageFusion([4, 4])

        def forward(self, x, z):
            return torch.cat([self.narrow([x[..., :2], z[..., :2]]), self.wide([x, z])], -1)

    result = export(Both(), tuple(xs((3, 4), (3, 4))))
    assert result.verdict.passed
    assert len({f.name for f in result.model.functions}) == 2


def test_a_broken_decomposition_is_named():
    class Raises(ScaledFusion):
        def decompose(self, op, xs, w):
            return op.Add(xs[0], xs[7])

    class Number(ScaledFusion):
        def decompose(self, op, xs, w):
            return 3.0

    class Swapped(ScaledFusion):
        def decompose(self, op, xs, w):
            return super().decompose(op, list(reversed(xs)), w)

    for cls, said in ((Raises, "Raises.decompose failed: IndexError"), (Number, "Number.decompose returns one value")):
        with pytest.raises(ExportError, match=said):
            export(cls([4, 4]), (xs((3, 4), (3, 4)),))
    fusion_onnx.testing.check_fusion(ScaledFusion)
    with pytest.raises(AssertionError, match="fuse and decompose differ"):
        fusion_onnx.testing.check_fusion(Swapped)


def test_hidden_state_that_is_no_option_is_refused():
    class Hidden(ScaledFusion):
        def __init__(self, dims=None, **base):
            super().__init__(dims, **base)
            self.c = torch.rand(()).item()

    Hidden([4, 4])
    with pytest.raises(FusionError, match="keeps c="):
        Hidden([4, 4])


def test_preprocessing_in_place_leaves_the_callers_tensors_alone():
    fusion = create("concatenation", preprocess_functions=torch.nn.ReLU(inplace=True))
    x = [-torch.ones(2, 3), -torch.ones(2, 4)]
    assert fusion(x).eq(0).all()
    assert x[0].eq(-1).all()
