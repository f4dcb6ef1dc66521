"""Every form computes the same; the rule that chooses among them is held against what was measured."""

import json
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fusion_onnx
from fusion_exporters import ExportError, Tuning, tune
from fusion_exporters.forms.choice import Chooser, _candidates
from fusion_exporters.forms.costs import RATES
from fusion_exporters.forms.tuning_file import Timing
from fusion_exporters.tuning import median_times
from fusion_onnx import FusionError, FusionLayer, create, export, form, locate, verify
from fusion_onnx.file_format import facts_in, forms_in
from fusion_onnx.fusions.sum import SumFusion
from fusion_onnx.runtime._wire import Message
from fusion_onnx.runtime.fused.program import compile_function
from fusion_onnx.verification.tolerance import BITS
from tests import cuda_standin

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "forms.json"
ELEMENTS = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}
FURTHER = [
    (name, other)
    for name in fusion_onnx.names()
    for other in list(fusion_onnx.get(name).cases[0].create(fusion_onnx.get(name)).forms())[1:]
]


def made(name, **given):
    cls = fusion_onnx.get(name)
    fusion = cls.cases[0].create(cls, **given) if not given.get("dims") else create(name, **given)
    return fusion


def inputs(fusion, rows=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(rows, d, generator=generator).to(dtype) for d in fusion.dims]
    length = fusion.calculate_l()
    return (xs,) if not length else (xs, torch.randn(length, generator=generator).to(dtype))


def facts(model):
    return facts_in({p.key: p.value for p in model.metadata_props})


def values_of(fusion, lead, dtype=torch.float32):
    """The inputs of a layer's node, whose parameters are constant."""
    shapes = [(*lead, d) for d in fusion.dims]
    values = [
        ir.Value(name=f"x{i}", shape=ir.Shape(s), type=ir.TensorType(ELEMENTS[dtype])) for i, s in enumerate(shapes)
    ]
    held = [b.to(dtype).numpy() for b in fusion.buffers()]
    held += [torch.zeros(fusion.calculate_l(), dtype=dtype).numpy()] if fusion.calculate_l() else []
    for i, array in enumerate(held):
        tensor = ir.tensor(array)
        values.append(ir.Value(name=f"p{i}", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
    return values


def candidates(fusion, lead, dtype=torch.float32):
    """What a fusion can be written as, without tracing anything."""
    values = values_of(fusion, lead, dtype)
    shapes = [(list(value.shape), value.const_value is not None) for value in values]
    return _candidates(fusion, values, len(fusion.dims), 18, shapes)


def chosen(fusion, rows, **options):
    """What the rule takes."""
    return Chooser(**options)(fusion, fusion.strategy(), values_of(fusion, [rows]), len(fusion.dims), 18)


@pytest.mark.parametrize(("name", "other"), FURTHER)
@pytest.mark.parametrize("case", [0, 1])
def test_every_form_is_equal_on_the_battery(name, other, case):
    cls = fusion_onnx.get(name)
    fusion = cls.cases[case].create(cls)
    args = inputs(fusion)
    try:
        result = export(fusion, args, form=other, verify=False)
    except ExportError as error:
        if "offers" not in str(error):  # such as a sum of two, which has no variadic form
            raise
        return
    (fact,) = facts(result.model).values()
    assert fact["form"] == other
    verdict = verify(fusion, result, args, battery=True)
    assert verdict.passed, verdict
    if fusion.bitwise and fusion.forms()[other].bitwise:
        assert verdict.rule == BITS


def test_a_form_that_computes_something_else_is_found():
    class WrongInOneForm(SumFusion):
        @form("wrong")
        def decompose_wrong(self, op, xs, w, *buffers):
            return op.Max(*xs)

    fusion = WrongInOneForm(dims=[4, 4])
    xs = (torch.randn(3, 4), torch.randn(3, 4))
    assert list(fusion.forms()) == ["chain", "wrong", "variadic"]
    assert export(fusion, (list(xs),)).verdict
    with pytest.raises(fusion_onnx.VerificationError):
        export(fusion, (list(xs),), form="wrong")
    with pytest.raises(AssertionError, match="the form 'wrong' and fuse differ"):
        fusion_onnx.testing.check_forms(WrongInOneForm, fusion_onnx.Case(dims=(4, 4)))


def test_a_fault_in_another_form_is_located():
    fusion = create("low_rank_concatenation", dims=[6, 4], n=5, r=2)
    args = inputs(fusion)
    model = export(fusion, args, form="dense").model
    body = model.functions[0]
    product = next(node for node in body.node if node.op_type == "Concat")
    product.input[0], product.input[1] = product.input[1], product.input[0]
    found = locate(fusion, model, args)
    assert found is not None
    assert (found.fusion, found.fault) == ("low_rank_concatenation", "body")
    assert "concat" in found.node


@pytest.mark.parametrize("name", fusion_onnx.names())
def test_no_form_computes_with_shapes(name):
    for case in fusion_onnx.get(name).cases:
        fusion = case.create(fusion_onnx.get(name))
        for rank in (1, 2, 3):
            for body in candidates(fusion, (4, 3, 2)[: rank - 1]).bodies.values():
                shapes = {node.outputs[0] for node in body if node.op_type == "Shape"}
                readers = {node.op_type for node in body if node.inputs and node.inputs[0] in shapes}
                assert readers <= {"ConstantOfShape"}  # others are left to the CPU by ONNX Runtime, also on a GPU


def test_costs_are_those_of_the_formulas():
    b, n, total, r, p, q = 64, 256, 512, 8, 16, 32
    low = chosen(create("low_rank_concatenation", dims=[256, 256], n=n, r=r), b).costs
    assert low["factored"].operations == 2 * b * r * (n + total)
    assert low["factored"].weights == r * (n + total)
    assert low["dense"].operations == 2 * b * n * total
    assert low["dense"].weights == n * total
    s, t = n // p, total // q
    kronecker = chosen(create("kronecker_concatenation", dims=[256, 256], n=n, p=p, q=q), b).costs
    copies = b * p * q  # of the left factor, one for each row
    assert kronecker["factored"].operations == 2 * b * min(q * s * (t + p), p * t * (q + s)) + copies
    assert kronecker["factored"].weights == p * q + s * t
    assert kronecker["dense"].operations == 2 * b * n * total
    weighted = chosen(create("weighted_sum", dims=[8, 8, 8], weights=[1.0, 2.0, 3.0]), b).costs["chain"]
    assert (weighted.operations, weighted.operators, weighted.weights) == (b * 8 * 5, 5, 3)
    assert weighted.bytes == 4 * (3 * (2 * b * 8 + 1) + 2 * 3 * b * 8)


def test_values_have_the_width_of_their_type_and_are_read_once():
    k, entries = 4, 64 * 8
    half, full = (2 * entries, 4 * entries)
    [wide, narrow] = (candidates(create("sum", dims=[8] * k), [64], t).costs for t in (torch.float32, torch.float16))
    assert wide["variadic"].bytes == (k + 1) * full
    assert narrow["variadic"].bytes == (k + 1) * (half + full) + (k + 1) * full  # inputs and result are cast
    assert narrow["chain"].bytes == (k + 1) * (half + full) + 3 * (k - 1) * full
    squares = candidates(create("l2_norm", dims=[8] * k), [64]).costs["variadic"]
    assert squares.bytes == (2 * k + k + 1 + 2) * full
    exact = candidates(create("max", dims=[8] * k), [64], torch.float16).costs["variadic"]
    assert exact.bytes == (k + 1) * half


def test_what_a_gpu_copies_and_goes_over_again_is_counted():
    rates, full = RATES["cuda"], 4 * 64 * 8
    for k, passes in ((2, 1), (8, 1), (9, 2), (15, 2), (16, 3), (64, 9)):
        costs = candidates(create("max", dims=[8] * k), [64]).costs
        [*works] = costs.get("variadic", costs["chain"]).work
        assert sum(work.launches(rates) for work in works) == passes
        assert sum(work.bytes_moved(rates) for work in works) == pytest.approx((k + 1 + 2 * (passes - 1)) * full)
        [*works] = costs["chain"].work  # two by two, as an operator on many inputs is computed on the CPU
        assert sum(work.bytes_moved(RATES["cpu"]) for work in works) == 3 * (k - 1) * full
    added = candidates(create("linear_concatenation", dims=[8] * 4, n=8), [64]).costs["accumulated"]
    gemms = [work for work in added.work if work.operator == "Gemm"]
    assert [work.launches(rates) for work in gemms] == [2] * 3
    assert [work.bytes_moved(rates) - work.bytes_moved(RATES["cpu"]) for work in gemms] == [2 * full] * 3
    matrix = candidates(create("weighted_sum", dims=[8] * 4, weights=[1.0, 2.0, 3.0, 4.0]), [64]).costs["matrix"]
    *_, last = matrix.work
    assert (last.operator, last.launches(rates), last.bytes_moved(rates)) == ("Reshape", 1, 2 * full)
    assert last.launches(RATES["cpu"]) == 1
    assert sum(work.launches(rates) for work in matrix.work) == 3


@pytest.mark.parametrize(
    ("name", "k", "rows", "form"),
    [
        *(
            (name, 4, rows, "variadic")
            for name in ("sum", "mean", "max", "l2_norm", "weighted_sum")
            for rows in (1, 4096)
        ),
        ("weighted_sum", 16, 4096, "variadic"),
        ("low_rank_concatenation", 4, 64, "factored"),
        ("low_rank_concatenation", 4, 4096, "accumulated"),
        ("linear_concatenation", 4, 4096, "joined"),
        ("random_matrix_adaptation", 4, 4096, "factored"),
        ("kronecker_concatenation", 4, 4096, "factored"),
    ],
)
def test_the_form_for_cuda(name, k, rows, form):
    options = {"weights": [i + 0.5 for i in range(k)]} if name == "weighted_sum" else {}
    fusion = create(name, dims=[1024] * k, **fusion_onnx.get(name).bench_options, **options)
    assert chosen(fusion, rows, provider="cuda").form == form
    if name == "random_matrix_adaptation":  # its faster form rounds otherwise
        assert chosen(fusion, rows, provider="cuda", requested="fastest").form == "folded"


@pytest.mark.skipif(bool(cuda_standin.why_not()), reason=cuda_standin.why_not())
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_launches_are_those_of_the_provider(which):
    done = cuda_standin.run("tests/launches_on_cuda.py", "--tb=short", "-m", which)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.splitlines()[-1]


def test_the_rule_takes_the_factored_form_only_where_it_is_cheaper():
    thin = create("low_rank_concatenation", dims=[512, 512], n=512, r=4)
    thick = create("low_rank_concatenation", dims=[512, 512], n=512, r=500)
    assert chosen(thin, 64, requested="fastest").form != "dense"
    assert chosen(thick, 64, requested="fastest").form == "dense"
    assert chosen(thick, 64).form != "dense"  # which gives Inf where the factors give NaN
    wide = create("weighted_sum", dims=[1024] * 4, weights=[1.0, 2.0, 3.0, 4.0])
    assert chosen(wide, 4096, requested="fastest").form == "chain"  # in one kernel
    many = create("sum", dims=[8] * 16)
    assert chosen(many, 1).form == "variadic"
    assert chosen(many, 1, provider="openvino").form == "chain"


@pytest.mark.parametrize("provider", sorted(RATES))
def test_without_a_wish_bits_infinities_and_nan_stay_those_of_eager_execution(provider):
    for name in fusion_onnx.names():
        fusion = made(name)
        for rows in (1, 16, 4096):
            taken = chosen(fusion, rows, provider=provider)
            assert fusion.forms()[taken.form].drop_in


def kernel(fusion, rows, form):
    body = ir.serde.serialize_function(chosen(fusion, rows, requested=form).body)
    program = compile_function(Message(body.SerializeToString()), range(len(body.input)))
    return program and (program.code, program.parts, program.constants)


@pytest.mark.parametrize(("times", "many"), [("forms", 40), ("without kernels", 20)])
def test_the_rule_against_what_was_measured(times, many):
    rows = json.loads(RESULTS.read_text())["rows"]
    from benchmarks.forms import SCENARIOS, fusions

    regrets = {}
    for scenario in SCENARIOS:
        for name, fusion in fusions(scenario, sorted({row["strategy"].partition(",")[0] for row in rows})):
            found = [r for r in rows if (r["strategy"], r["scenario"]) == (name, scenario.name)]
            if not found or not found[0][times]:
                continue
            timed = {f: t["microseconds"] for f, t in found[0][times].items()}
            taken = chosen(fusion, scenario.rows, isolated=fusion.entrywise).form
            alike = [taken]
            if times == "forms":  # forms that are the same kernel differ by noise alone
                kernels = {f: kernel(fusion, scenario.rows, f) for f in timed}
                alike += [f for f in timed if kernels[f] == kernels[taken] is not None]
            best = min(timed[f] for f in timed if fusion.forms()[f].drop_in)
            regrets[name, scenario.name] = min(timed[f] for f in alike) / best
    assert len(regrets) > many
    assert max(regrets.values()) < 1.3, sorted(regrets.items(), key=lambda item: -item[1])[:5]
    assert np.exp(np.mean(np.log(list(regrets.values())))) < 1.05


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left = FusionLayer(create("low_rank_concatenation", dims=[4, 4], n=4, r=2))
        self.right = create("sum")

    def forward(self, x, y, z):
        return self.left(x, y) + self.right([x, y, z])


TENSORS = (torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4))


def test_a_form_for_each_fusion():
    made = export(Two(), TENSORS, form={"left": "dense", "right": "variadic"})
    assert {node: fact["form"] for node, fact in facts(made.model).items()} == {"left": "dense", "right": "variadic"}
    assert sorted(f.name for f in made.model.functions) == ["low_rank_concatenation_dense_4_4_n4_r2", "sum_variadic_k3"]
    everywhere = facts(export(Two(), TENSORS, form="dense", verify=False).model)
    assert (everywhere["left"]["form"], everywhere["right"]["form"]) == ("dense", "chain")


def test_wishes_that_cannot_be_met_are_errors():
    with pytest.raises(ExportError, match=r"no fusion.*'thin'.*factored, accumulated, dense"):
        export(Two(), TENSORS, form="thin")
    with pytest.raises(ExportError, match=r"'middle'.*left.*right"):
        export(Two(), TENSORS, form={"middle": "dense"})
    with pytest.raises(ExportError, match="no form 'dense': right"):
        export(Two(), TENSORS, form={"right": "dense"})
    with pytest.raises(ExportError, match="form is"):
        export(Two(), TENSORS, form=3)
    with pytest.raises(FusionError, match=r"sum has no form 'dense'.*chain, variadic"):
        create("sum").in_form("dense")
    with pytest.raises(ExportError, match="offers chain here"):
        export(create("sum", dims=[4, 4]), ([TENSORS[0], TENSORS[1]],), form={"sum": "variadic"})


def test_tune_measures_every_form_and_export_follows_it(tmp_path):
    found = tune(Two(), TENSORS, seconds=0.02)
    assert [(e.fusion, e.rows, e.provider) for e in found.entries] == [("left", 5, "cpu"), ("right", 5, "cpu")]
    assert [list(e.seconds) for e in found.entries] == [["factored", "accumulated", "dense"], ["chain", "variadic"]]
    assert found.entries[0].form != "dense"  # measured, but no candidate
    found.write(tmp_path / "forms.json")
    assert Tuning.read(tmp_path / "forms.json") == found
    left, right = found.entries
    for wanted in ("factored", "accumulated"):
        edited = Tuning(found.machine, [Timing(**{**vars(left), "form": wanted}), right])
        edited.write(tmp_path / "forms.json")
        model = export(Two(), TENSORS, form=tmp_path / "forms.json", verify=False).model
        assert facts(model)["left"]["form"] == wanted


def test_a_call_held_up_at_first_is_measured_in_turns_as_long_as_the_others():
    count = 0

    def held_up():
        nonlocal count
        count += 1
        time.sleep(0.1 if count == 4 else 0.001)

    median_times({"held up": held_up}, 0)
    turns = 5
    assert count > 5 * turns


def test_tune_keeps_the_nearest_size():
    sizes = ((1, 12, "variadic"), (4096, 12, "chain"), (4096, 3000, "variadic"))
    entries = [Timing("a", "sum_k3", "cpu", rows, width, "float32", form, {}) for rows, width, form in sizes]
    tuning = Tuning("here", entries)
    found = [tuning.form("sum_k3", "cpu", rows, 12, "float32") for rows in (0, 2, 63, 65, 10**6)]
    assert found == ["variadic"] * 3 + ["chain"] * 2
    assert tuning.form("sum_k3", "cpu", 4096, 2000, "float32") == "variadic"
    assert tuning.form("sum_k3", "cuda", 1, 12, "float32") is None
    assert tuning.form("sum_k4", "cpu", 1, 12, "float32") is None
    assert tuning.form("sum_k3", "cpu", 1, 12, "float16") is None


def test_fusions_of_one_function_and_two_widths_are_told_apart(tmp_path):
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = create("sum", dims=[4] * 3), create("sum", dims=[64] * 3)

        def forward(self, x, y):
            return self.narrow([x, x + 1, x + 2]), self.wide([y, y + 1, y + 2])

    for narrow, wide in (("chain", "variadic"), ("variadic", "chain")):
        where = ("sum_k3", "cpu", 5)
        entries = [
            Timing("narrow", *where, 12, "float32", narrow, {}),
            Timing("wide", *where, 192, "float32", wide, {}),
        ]
        Tuning("here", entries).write(tmp_path / "forms.json")
        example = (torch.randn(5, 4), torch.randn(5, 64))
        found = facts(export(Wide(), example, form=tmp_path / "forms.json", verify=False).model)
        assert {name: (fact["form"], fact["by"]) for name, fact in found.items()} == {
            "narrow": (narrow, "measurement"),
            "wide": (wide, "measurement"),
        }


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("sum_k3", "cpu", 5, 12, "float32", "thin"), r"says 'thin'.*has chain, variadic"),
        (("sum_k3", "cuda", 5, 12, "float32", "chain"), "nothing on the module's fusions"),
        (("sum_k9", "cpu", 5, 12, "float32", "chain"), "nothing on the module's fusions"),
    ],
)
def test_a_tuning_of_something_else_is_refused(tmp_path, entry, said):
    Tuning("here", [Timing("sum", *entry, {})]).write(tmp_path / "forms.json")
    with pytest.raises(ExportError, match=said):
        export(create("sum", dims=[4] * 3), (TENSORS[:3],), form=tmp_path / "forms.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 2, "fusions": [{}], "machine": ""}'])
def test_another_file_is_no_tuning(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ExportError, match="no file of fusion-onnx tune"):
        export(Two(), TENSORS, form=str(tmp_path / "x.json"))


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"form": "no such form"}}', '{"a": {}}'])
def test_metadata_that_cannot_be_read_changes_nothing(text):
    fusion = create("sum", dims=[4, 4])
    assert fusion.as_written(forms_in({"fusion_onnx.forms": text})) == fusion.in_form()


def test_a_fusion_in_a_form_is_the_same_fusion():
    fusion = create("random_matrix_adaptation", dims=[4, 4], n=3)
    other, first = fusion.in_form("dense"), fusion.in_form("factored")
    assert first == fusion.in_form()
    assert (other.form, other.bitwise, other.is_default, first.is_default) == ("dense", False, False, True)
    assert other.fusion is fusion
    assert other.decompose == fusion.decompose_dense
