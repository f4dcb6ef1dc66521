"""`export(optimize="algebra")`: what becomes of fusions beside linear layers, and when it is left alone."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fusion_onnx
from fusion_exporters import ExportError
from fusion_onnx.file_format import algebra_in
from fusion_onnx.verification.locate import locate

WEIGHTED = {
    "mean": {},
    "learned_weighted_sum": {},
    "weighted_sum": {"weights": [0.3, -1.7, 2.2]},
    "metric": {"metric": "mean"},
}


class Merged(nn.Module):
    """Three linear layers into a fusion, with a head behind it."""

    def __init__(self, name, widths=(6, 5, 7), n=4, bias=True, between=None, **options):
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(width, n, bias=bias) for width in widths)
        self.between = between or nn.Identity()
        fusion = fusion_onnx.create(name, dims=[n] * len(widths), **options)
        self.merge = fusion_onnx.FusionLayer(fusion)
        if fusion.calculate_l():
            nn.init.normal_(self.merge.w)
        self.head = nn.Linear(n * len(widths) if name == "concatenation" else n, 3, bias=bias)

    def forward(self, *hs):
        return self.head(self.merge(*[self.between(layer(h)) for layer, h in zip(self.branches, hs, strict=True)]))


def inputs(shape=(2,), widths=(6, 5, 7), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, width, generator=generator).to(dtype) for width in widths)


def done(result):
    return algebra_in({p.key: p.value for p in result.model.metadata_props})


def exact(module, xs):
    with torch.no_grad():
        return module.double()(*[x.double() for x in xs]).numpy()


def functions(result):
    return [node.op_type for node in result.model.graph.node if node.domain == "fusion_onnx"]


@pytest.mark.parametrize("inline", ["none", "all"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_go_into_the_layers_before(name, shape, bias, inline):
    module, xs = Merged(name, bias=bias, **WEIGHTED[name]), inputs(shape)
    result = fusion_onnx.export(module, xs, optimize="algebra", inline=inline)
    assert done(result) == {"merge": "weights multiplied into the linear layers before it"}
    assert all(function.startswith("sum") for function in functions(result))
    operators = {node.op_type for f in result.model.functions for node in f.node if f.domain == "fusion_onnx"}
    assert not operators & {"Mul", "Div"}
    for rows in (1, 2, 7):
        xs = inputs((rows, *shape[1:]))
        got = fusion_onnx.Session(result, "cpu").run(*[x.numpy() for x in xs])[0]
        np.testing.assert_allclose(got, exact(module, xs), rtol=1e-5, atol=1e-6)
        module.float()


@pytest.mark.parametrize("form", ["auto", "joined", "accumulated"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_a_concatenation_becomes_one_with_the_layer_after(shape, bias, form):
    module, xs = Merged("concatenation", bias=bias), inputs(shape)
    result = fusion_onnx.export(module, xs, optimize="algebra", form=form)
    assert done(result) == {"merge": "one with the linear layer after it"}
    assert functions(result)[0].startswith("linear_concatenation")
    if form == "accumulated":
        assert "Concat" not in {node.op_type for f in result.model.functions for node in f.node}
    assert [i.name for i in result.model.graph.initializer].count("head.weight") == 0
    got = fusion_onnx.Session(result, "cpu").run(*[x.numpy() for x in xs])[0]
    np.testing.assert_allclose(got, exact(module, xs), rtol=1e-5, atol=1e-6)


def test_large_batches_have_the_accumulated_form():
    module = Merged("concatenation", widths=(64,) * 4, n=1024)
    result = fusion_onnx.export(module, inputs((4096,), (64,) * 4), optimize="algebra", verify=False)
    assert functions(result) == ["linear_concatenation_accumulated_1024_1024_1024_1024_n3"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types(dtype):
    for name in ("mean", "concatenation"):
        module, xs = Merged(name).to(dtype), inputs(dtype=dtype)
        result = fusion_onnx.export(module, xs, optimize="algebra")
        assert done(result)
        got = fusion_onnx.Session(result, "cpu").run(*[x.numpy() for x in xs])[0]
        tolerance = 1e-12 if dtype == torch.float64 else 1e-2
        np.testing.assert_allclose(got.astype("f8"), exact(module, xs), rtol=tolerance, atol=tolerance)


def test_it_is_off_unless_asked_for():
    module, xs = Merged("mean"), inputs()
    result = fusion_onnx.export(module, xs)
    assert done(result) == {}
    assert functions(result) == ["mean_k3"]
    with pytest.raises(ExportError, match='optimize is "none" or "algebra"'):
        fusion_onnx.export(module, xs, optimize="all")


class Twice(Merged):
    """The first branch's result is used beside the fusion too."""

    def forward(self, *hs):
        first, *others = [layer(h) for layer, h in zip(self.branches, hs, strict=True)]
        return self.head(self.merge(first, *others) + first)


class Same(Merged):
    """One branch into the fusion three times."""

    def forward(self, h):
        x = self.branches[0](h)
        return self.head(self.merge(x, x, x))


class Shown(Merged):
    """What is fused is an output too."""

    def forward(self, *hs):
        y = self.merge(*[layer(h) for layer, h in zip(self.branches, hs, strict=True)])
        return y, self.head(y)


@pytest.mark.parametrize(
    ("module", "xs"),
    [
        (Merged("mean", between=nn.ReLU()), inputs()),
        (Merged("median"), inputs()),
        (Merged("sum"), inputs()),
        (Merged("mean", preprocess_functions="relu"), inputs()),
        (Merged("concatenation", postprocess_functions="relu"), inputs()),
        (Twice("mean"), inputs()),
        (Same("mean"), inputs()[:1]),
        (Shown("concatenation"), inputs()),
        (fusion_onnx.create("mean"), (list(inputs(widths=(4, 4))),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_fit_is_left_alone(module, xs):
    result = fusion_onnx.export(module, xs, optimize="algebra")
    assert done(result) == {}
    assert result.verdict.passed
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert metadata["fusion_onnx.algebra"].startswith(("nothing to do", "not done: the linear layers of branches"))


def test_what_comes_after_the_fusion_does_not_matter():
    module, xs = Merged("mean", postprocess_functions="relu"), inputs()
    result = fusion_onnx.export(module, xs, optimize="algebra")
    assert done(result)
    got = fusion_onnx.Session(result, "cpu").run(*[x.numpy() for x in xs])[0]
    np.testing.assert_allclose(got, exact(module, xs), rtol=1e-5, atol=1e-6)


def test_a_fused_value_may_be_an_output():
    module, xs = Shown("mean"), inputs()
    result = fusion_onnx.export(module, xs, optimize="algebra")
    assert done(result)
    assert [o.name for o in result.model.graph.output] == ["y1", "y2"]


def test_a_network_that_ends_in_the_layer_after_keeps_its_outputs_name():
    module = Merged("concatenation")
    result = fusion_onnx.export(module, inputs(), optimize="algebra", output_names=["logits"])
    assert [o.name for o in result.model.graph.output] == ["logits"]
    assert fusion_onnx.Session(result, "cpu").run(*[x.numpy() for x in inputs()])[0].shape == (2, 3)


@pytest.mark.parametrize("factor", [1e38, 1e-42])
def test_weights_that_would_leave_the_range_stay_where_they_are(factor):
    module, xs = Merged("learned_weighted_sum"), inputs()
    with torch.no_grad():
        module.merge.w.fill_(factor)
        module.branches[0].weight.fill_(20.0 if factor > 1 else 0.5)
    result = fusion_onnx.export(module, xs, optimize="algebra", verify=False)
    assert done(result) == {}
    said = next(p.value for p in result.model.metadata_props if p.key == "fusion_onnx.algebra")
    assert said.startswith("not done:")
    assert "branches.0.weight" in said


def test_a_siamese_layer_keeps_its_weights_for_the_others():
    class Siamese(Merged):
        def forward(self, *hs):
            shared = self.branches[0]
            return self.head(self.merge(*[shared(h) for h in hs]))

    module, xs = Siamese("weighted_sum", weights=[0.3, -1.7, 2.2]), inputs(widths=(6, 6, 6))
    result = fusion_onnx.export(module, xs, optimize="algebra")
    assert done(result)
    got = fusion_onnx.Session(result, "cpu").run(*[x.numpy() for x in xs])[0]
    np.testing.assert_allclose(got, exact(module, xs), rtol=1e-5, atol=1e-6)


def test_what_verification_rejects_is_not_done(monkeypatch):
    """A rewriting that is wrong on purpose: the export falls back, and says why."""
    from fusion_exporters import algebra

    right = algebra._scale
    monkeypatch.setattr(algebra, "_scale", lambda value, factor: right(value, factor * 1.01))
    result = fusion_onnx.export(Merged("mean"), inputs(), optimize="algebra")
    assert result.verdict.passed
    assert done(result) == {}
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert metadata["fusion_onnx.algebra"].startswith("not done, it would differ: ")


@pytest.mark.parametrize("inline", ["none", "all"])
@pytest.mark.parametrize("name", ["mean", "concatenation"])
def test_a_rewritten_model_is_verified_with_hostile_values_and_faults_are_located(name, inline):
    module, xs = Merged(name), inputs()
    result = fusion_onnx.export(module, xs, optimize="algebra", inline=inline)
    assert fusion_onnx.verify(module, result, xs, battery=True).passed
    assert locate(module, result, xs) is None
    broken = onnx.ModelProto()
    broken.CopyFrom(result.model)
    names = ("branches.1.weight_folded", "branches.1.weight")
    changed = next(t for t in broken.graph.initializer if t.name in names)
    values = onnx.numpy_helper.to_array(changed).copy()
    values[0, 0] += 1
    changed.CopyFrom(onnx.numpy_helper.from_array(values, changed.name))
    found = locate(module, broken, xs)
    assert found is not None
    assert (found.node, found.fusion) == ("merge", "merge")  # what is before it has no counterpart in eager execution
    broken.CopyFrom(result.model)
    head = next(t for t in broken.graph.initializer if t.name == "head.bias")
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) + 1, head.name))
    # the concatenation is one with the head but for its bias, which eager execution never leaves out
    assert locate(module, broken, xs).node == ("head/Gemm" if name == "mean" else "merge")


def test_inspect_and_the_command_line_say_it(tmp_path):
    from typer.testing import CliRunner

    from fusion_onnx.cli import app

    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.test_algebra import Merged, inputs\n"
        "def build():\n    return Merged('mean'), inputs()\n"
    )
    file = tmp_path / "net.onnx"
    run = CliRunner()
    done = run.invoke(app, ["export", f"{tmp_path / 'net.py'}:build", "-o", str(file), "--optimize", "algebra"])
    assert done.exit_code == 0, done.output
    told = json.loads(run.invoke(app, ["inspect", str(file), "--json"]).output)
    assert told["fusions"][0]["cost"]["algebra"] == "weights multiplied into the linear layers before it"
    assert "multiplied into" in " ".join(run.invoke(app, ["inspect", str(file)], env={"COLUMNS": "200"}).output.split())
    (tmp_path / "none.py").write_text(
        "import torch\nfrom tests.test_algebra import Merged, inputs\n"
        "def build():\n    return Merged('median'), inputs()\n"
    )
    args = ["export", f"{tmp_path / 'none.py'}:build", "-o", str(file), "--optimize", "algebra", "--overwrite"]
    assert "algebra: nothing to do" in run.invoke(app, args).output
    assert "nothing to do" in run.invoke(app, ["inspect", str(file)], env={"COLUMNS": "200"}).output
