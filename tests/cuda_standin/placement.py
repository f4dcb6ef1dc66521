"""Every strategy in every form, on CUDA alone: run by test_cuda_standin.py, in a process where CUDA is the stand-in."""

import itertools
from collections import Counter
from typing import NamedTuple

import onnx_ir as ir
import pytest
import torch

import fusion_onnx
from fusion_exporters.forms.costs import RATES, cost
from fusion_onnx import ExportError, FusionLayer, Session, export
from tests.cuda_standin import counted
from tests.test_export import drawn


class Setting(NamedTuple):
    """How a fusion is exported: dtype, opset, the inputs' rank, and whether its parameters are constant."""

    dtype: str = "float32"
    opset: int = 18
    rank: int = 2
    constant: bool = False

    def __str__(self):
        return f"{self.dtype}-opset{self.opset}-rank{self.rank}{'-constant' if self.constant else ''}"


DTYPES, OPSETS = ("float32", "float16", "bfloat16", "float64"), (18, 21, 24, 26)
SETTINGS = [
    *(Setting(*setting) for setting in itertools.product(DTYPES, OPSETS, [2], [False, True])),
    *(Setting("float32", 18, rank, constant) for rank in (1, 3) for constant in (False, True)),
]
EACH = {  # by one case of each strategy, before every commit
    *(Setting(dtype) for dtype in DTYPES),
    *(Setting(rank=rank) for rank in (1, 3)),
    *(Setting(opset=opset) for opset in OPSETS),
    *(Setting(dtype, constant=True) for dtype in ("float32", "float16")),
}
TRIALS = [
    pytest.param(
        name,
        case,
        form,
        setting,
        id=f"{name}-{i}-{form}-{setting}",
        marks=[] if setting == Setting() or (i == 0 and setting in EACH) else pytest.mark.slow,
    )
    for name in fusion_onnx.names()
    for i, case in enumerate(fusion_onnx.get(name).cases)
    for form in case.create(fusion_onnx.get(name)).forms()
    for setting in SETTINGS
]


def counts_of_the_rule(model, xs, w):
    """Return the launches, products and copies of each operator of the fusion's body, by the cost rule."""
    [node], [body] = model.graph.node, model.functions
    shapes = dict(zip([value.name for value in model.graph.input], [tuple(x.shape) for x in (*xs, *w)], strict=True))
    constant = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [(constant[n], True) if n in constant else (shapes[n], False) for n in node.input]
    dtype = ir.DataType(model.graph.input[0].type.tensor_type.elem_type)
    rule = Counter()
    for work in cost(body, inputs, dtype).work:
        rule[work.operator] += work.launches(RATES["cuda"])
    return rule


def check_launches(rule, session, done, k):
    """Hold the rule's count against what was launched.

    ONNX Runtime leaves out multiplications by 1, which the rule cannot see; it takes the transposition of a factor and
    the sum after it into a product, which then copies the addend, and two casts of one value into one. An Einsum is as
    many products as it takes.
    """
    nodes = Counter(node.op_type for node in session.placement())
    most = sum(rule.values()) - sum(max(rule[operator] - nodes[operator], 0) for operator in ("Mul", "Div"))
    least = most - (rule["Transpose"] + rule["Add"] if done.products else 0) - (k == 1 and rule["Cast"] > 1)
    launches = done.launches + done.products + done.on_device
    assert least <= launches
    assert launches <= most + (rule["Add"] if done.products else 0) or rule["Einsum"]


@pytest.mark.parametrize(("name", "case", "form", "setting"), TRIALS)
def test_every_form_runs_on_cuda_alone_as_the_cost_rule_counts(name, case, form, setting):
    fusion = case.create(fusion_onnx.get(name))
    dtype = getattr(torch, setting.dtype)
    module = FusionLayer(fusion).to(dtype) if setting.constant else fusion
    args = drawn(fusion, 3, dtype, setting.rank)
    try:
        example = tuple(args[0]) if setting.constant else args
        model = export(module, example, form=form, opset=setting.opset, verify=False).model
    except ExportError as error:
        if "offers" in str(error):  # such as a sum of two, which has no variadic form
            return
        raise
    session = Session(model, "cuda")
    assert {node.provider for node in session.placement()} == {"CUDAExecutionProvider"}
    for batch in (0, 3):
        xs, *w = drawn(fusion, batch, dtype, setting.rank)
        w = [] if setting.constant else w
        with counted() as done:
            [y] = session.run(*xs, *w)
        assert y.shape[:-1] == xs[0].shape[:-1]
        assert done.empty_launches == 0
    check_launches(counts_of_the_rule(model, xs, w), session, done, len(xs))
