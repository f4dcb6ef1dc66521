"""Operators whose translation by torch loses digits, NaN, infinities or a dtype come out as in eager."""

import json
import math
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import operators as campaign
from fusion_onnx import create, export, verify

NUMBERS = (0, 1e-7, -1e-7, 3e-4, -3e-4, 0.5, -0.5, 1, -1, 3, -3, 8.47, -8.47, 30, -30, math.inf, -math.inf, math.nan)


class Of(nn.Module):
    """What a function makes of two numbers, the first through a fusion."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.sum = create("sum", dims=[1, 1])

    def forward(self, x, y):
        return self.function(self.sum([x, torch.zeros_like(x)]), y)


OPERATORS = {
    "log1p": lambda x, y: torch.log1p(x),
    "expm1": lambda x, y: torch.expm1(x),
    "logsigmoid": lambda x, y: F.logsigmoid(x),
    "binary cross entropy": lambda x, y: F.binary_cross_entropy_with_logits(
        x.clamp(-40, 40), torch.full_like(x, 0.3), pos_weight=torch.full_like(x, 1.7), reduction="none"
    ),
    "multilabel soft margin": lambda x, y: F.multilabel_soft_margin_loss(x, torch.ones_like(x), reduction="none"),
    "softplus": lambda x, y: F.softplus(x),
    "softplus, scaled": lambda x, y: F.softplus(x, 0.3, 5),
    "logaddexp": lambda x, y: torch.logaddexp(x, y),
    "atan2": lambda x, y: torch.atan2(x, y),
    "remainder": lambda x, y: torch.remainder(x, y),
    "remainder of a number": lambda x, y: torch.remainder(3.3, y) + x,
    "remainder by a number": lambda x, y: torch.remainder(x, -0.7),
    "quotient, rounded down": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "quotient by a number": lambda x, y: x // -0.7,
    "quotient, rounded to 0": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "celu": lambda x, y: F.celu(x, 0.7),
    "hardsigmoid": lambda x, y: F.hardsigmoid(x),
    "hardswish": lambda x, y: F.hardswish(x),
    "logit": lambda x, y: torch.logit(x, 0.1),
    "log softmax": lambda x, y: torch.stack([x, y]).log_softmax(0),
    "softmax": lambda x, y: torch.stack([x, y]).softmax(0),
    "cross entropy": lambda x, y: F.cross_entropy(
        torch.cat([x, y], 1), torch.zeros(len(x), dtype=torch.int64), reduction="none"
    ),
    "clamp from below": lambda x, y: x.clamp_min(0.3),
    "clamp from above": lambda x, y: x.clamp(max=0.3),
    "normalize": lambda x, y: F.normalize(torch.cat([x, y], 1), dim=1),
    "logcumsumexp": lambda x, y: torch.cat([x, y, x * 3], 1).abs().add(1).logcumsumexp(1),
    "amax": lambda x, y: torch.cat([x, y], 1).nan_to_num(0, 1, -1).amax(),
    "erfc": lambda x, y: torch.erfc(x.clamp(max=3)),
    "sinc": lambda x, y: torch.sinc(x.clamp(-4, 4) * 0.1),
    "angle": lambda x, y: torch.angle(x),
    "multilabel margin": lambda x, y: F.multilabel_margin_loss(
        torch.cat([x, y, x * 0.3], 1), torch.tensor([[2, 0, -1]]).expand(len(x), -1), reduction="none"
    ),
    "heaviside": lambda x, y: torch.heaviside(x, y),
    "diagonal": lambda x, y: x.reshape(18, 18).diagonal(-2),
}
# ONNX Runtime has no float64 Atan and Erf; eager rounds to float16 what is subtracted from the logarithm, and has no
# float16 margins
ELSEWHERE = {("atan2", "float64"), ("erfc", "float64"), ("cross entropy", "float16"), ("multilabel margin", "float16")}


def outputs(module, *args):
    """Return what ONNX Runtime alone makes of the export, and what eager execution does."""
    model = export(module.eval(), args, dynamic=None, verify=False).model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = module(*args)
    return session.run(None, {info.name: x.numpy() for info, x in zip(session.get_inputs(), args, strict=True)}), want


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("float16", marks=pytest.mark.slow)])
def test_digits_and_what_is_not_finite(dtype):
    """Small numbers keep their digits, NaN and infinities go where eager's go, each beside each other."""
    kind = getattr(torch, dtype)
    x, y = (v.reshape(-1, 1).to(kind) for v in torch.meshgrid(*[torch.tensor(NUMBERS)] * 2, indexing="ij"))
    names = [name for name in OPERATORS if (name, dtype) not in ELSEWHERE]
    found = outputs(Of(lambda *xs: tuple(OPERATORS[name](*xs) for name in names)), x, y)
    digits = torch.finfo(kind)
    for name, got, want in zip(names, *found, strict=True):
        assert got.dtype == want.numpy().dtype, name
        near = {"rtol": 8 * digits.eps, "atol": 2 * float(digits.smallest_normal)}
        np.testing.assert_allclose(got, want.numpy(), **near, err_msg=name)


def test_a_zero_has_its_side():
    """atan2 of zeros: the sign of either decides."""

    class Angle(nn.Module):
        def forward(self, x, y):
            return torch.atan2(x, y)

    x, y = (v.reshape(-1, 1) for v in torch.meshgrid(*[torch.tensor([0.0, -0.0, 1.0, -1.0])] * 2, indexing="ij"))
    (got,), want = outputs(Angle(), x, y)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


SHORT = {
    "abs": lambda x, y: x.abs(),
    "amax": lambda x, y: x.amax(0),
    "sum": lambda x, y: x.sum(0),
    "prod": lambda x, y: x.prod(0),
    "cumsum": lambda x, y: x.cumsum(0),
    "cosine similarity": lambda x, y: F.cosine_similarity(x, y, dim=0),
    "in float32": lambda x, y: x.abs().float(),
}


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_outputs_have_eagers_dtype(dtype):
    """torch computes these in float32, and left it at that where they are the last."""
    kind = getattr(torch, dtype)
    args = (torch.rand(5, 1).to(kind), torch.rand(5, 1).to(kind))
    module = Of(lambda *xs: tuple(function(*xs) for function in SHORT.values())).eval()
    model = export(module, args, dynamic=None, verify=dtype == "float16").model
    types = [onnx.helper.tensor_dtype_to_string(info.type.tensor_type.elem_type) for info in model.graph.output]
    names = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
    assert types == [f"TensorProto.{names[y.dtype]}" for y in module(*args)]


LITERALS = {
    "hardtanh": lambda x: F.hardtanh(x, -0.1, 0.3),
    "product": lambda x: torch.addmm(x[0, :5], x, x.T, alpha=0.6, beta=0.2),
    "alpha": lambda x: torch.add(x, x.flip(0), alpha=0.3),
    "bounds": lambda x: x.clamp(-0.1, 0.3) + x.clamp(-0.2, 0.2) * x.clamp(max=0.7),
    "fill": lambda x: x.masked_fill(x > 0, 0.7),
    "full": lambda x: x * torch.full((1,), 0.2, dtype=x.dtype),
    "isclose": lambda x: torch.isclose(x, x * (1 + 1.00000001e-5)).to(x.dtype),
    "degrees": lambda x: torch.deg2rad(torch.rad2deg(x) * 3),
    "logarithms": lambda x: x.abs().log10() + x.abs().log2(),
    "selu": lambda x: F.selu(x),
    "instance norm": lambda x: F.instance_norm(x[None], eps=0.1),
}


def test_numbers_beside_float64_keep_their_digits():
    """torch's translations make float32 of the numbers among an operator's arguments."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("own", torch.tensor([0.3], dtype=torch.float32).double())

        def forward(self, x):
            return *(function(x) for function in LITERALS.values()), x * self.own

    torch.manual_seed(0)
    got, want = outputs(Many(), torch.randn(5, 7, dtype=torch.float64))
    for name, a, b in zip([*LITERALS, "a tensor of the module's own"], got, want, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-14, atol=1e-15, err_msg=name)


WIDER = {
    "softmax": lambda x: x.softmax(0, dtype=torch.float64),
    "softmin": lambda x: F.softmin(x, 0, dtype=torch.float64),
    "log softmax": lambda x: x.log_softmax(0, dtype=torch.float64),
    "mean": lambda x: x.mean(0, dtype=torch.float64),
    "sum": lambda x: x.sum(0, dtype=torch.float64),
    "mean of nothing": lambda x: x[:0].mean(0),
    "sum of nothing": lambda x: x[:0].sum(0),
}


def test_a_wider_dtype_that_is_asked_for_counts_from_the_start():
    class Many(nn.Module):
        def forward(self, x):
            return tuple(function(x) for function in WIDER.values())

    torch.manual_seed(0)
    for name, a, b in zip(WIDER, *outputs(Many(), torch.rand(50, 3)), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-14, err_msg=name)


def test_the_first_run_rounds_as_the_others_do():
    """What watches it takes torch another way through matmul; that is not the module's doing."""

    class Product(nn.Module):
        def forward(self, x, y):
            return x @ y

    torch.manual_seed(0)
    args = (torch.randn(5, 5, 5) * 9, torch.randn(1, 5, 5) * 9)
    assert verify(Product(), export(Product(), args, dynamic=None, verify=False), args)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_small_numbers_are_added(dtype):
    """What keeps a division from 0 / 0; onnxscript takes x + 1e-9 for x, and x (1 + 1e-6) as well."""

    class Small(nn.Module):
        def forward(self, x):
            return x / (x.norm(dim=1, keepdim=True) + 1e-9), x + 1e-10, x - 1e-9, x * (1 + 1e-6), x / (1 + 2e-6), x * 1

    x = torch.cat([torch.zeros(1, 3), torch.full((1, 3), 1e-9), torch.ones(1, 3)]).to(getattr(torch, dtype))
    for a, b in zip(*outputs(Small(), x), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=4 * torch.finfo(x.dtype).eps)


@pytest.mark.parametrize(
    ("actual", "says"),
    [
        ([1.0, math.nan, math.inf], ""),
        ([1.001, math.nan, math.inf], "1.00"),
        ([1.0, 0.0, math.inf], "NaN"),
        ([1.0, math.nan, -math.inf], "Inf"),
        ([1.0, math.nan], "shape"),
    ],
)
def test_the_campaign_tells_what_differs(actual, says):
    expected = torch.tensor([1.0, math.nan, math.inf])
    found = campaign.difference(np.array(actual, np.float32), expected, None)
    assert found.startswith(says) and bool(found) == bool(says)
    assert campaign.difference(np.array(actual), expected, None).startswith("dtype")


@pytest.mark.slow
def test_the_campaign_has_an_outcome_for_what_is_wrong(monkeypatch):
    """A file that is wrong and passed; one that is right and refused."""
    op = campaign.operators()["neg"]
    sample = campaign.samples(op, torch.float32, 1)[0]
    passed = type("Verdict", (), {"passed": True, "known": [], "reasons": []})
    monkeypatch.setattr(campaign.fusion_onnx, "verify", lambda *_: passed)
    assert campaign.trial(op.op, sample, torch.float32)["outcome"] == "right"
    said = {"plain": "", "ours": "1, not 2", "verdict": ""}
    assert campaign._outcome(said, False, False) == "passed"
    assert campaign._outcome({**said, "ours": "with NaN: NaN elsewhere"}, False, False) == "passed"
    assert campaign._outcome({**said, "ours": "with NaN: NaN elsewhere"}, False, True) == "known"
    assert campaign._outcome({**said, "ours": "with Inf: NaN elsewhere"}, False, False) == "infinite"
    assert campaign._outcome({**said, "ours": "", "verdict": "differs"}, False, False) == "alarm"
    assert campaign._outcome({**said, "plain": "1, not 2", "verdict": "differs"}, False, False) == "refused"


@pytest.mark.slow
def test_a_sample_of_torchs_operators(tmp_path):
    """Right, or refused for a reason that the plain export has too."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.operators",
        "--draw",
        "40",
        "--samples",
        "1",
        "--output",
        str(tmp_path),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    results = json.loads((tmp_path / "operators.json").read_text())
    outcomes = [campaign.worst(trials) for found in results.values() for trials in found.values()]
    assert outcomes.count("right") > 10
    assert run.returncode == 0, run.stdout + run.stderr


def _losses(x, classes, weight):
    """Return the losses of rows for classes, and for probabilities, in every form."""
    return {
        (kind, smoothing, reduction): F.cross_entropy(
            x, target, weight, ignore_index=ignored, label_smoothing=smoothing, reduction=reduction
        )
        for kind, target, ignored in (("classes", classes, 1), ("probabilities", x.flip(1).softmax(1), -100))
        for smoothing in (0.0, 0.1)
        for reduction in ("none", "mean", "sum")
    }


BOUNDS = {
    "below and above": lambda x: x.clamp(-2, 0.3),
    "by name": lambda x: torch.clip(x, max=1, min=-0.7),
    "in place": lambda x: x.clone().clamp_(-1, 0.5),
    "of integers": lambda x: (x * 3).long().clamp(-2, 0.3),
}


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float16", marks=pytest.mark.slow)])
def test_losses_of_rows_and_bounds_of_two_kinds(dtype):
    """With a dynamic batch, where torch infers one number for the losses of all rows; the weight's 0.1 is float32's."""
    weight = torch.tensor([0.1, 0.4, 0.7, 1.0])

    class Losses(nn.Module):
        def __init__(self):
            super().__init__()
            self.sum = create("sum", dims=[4, 4])

        def forward(self, x, y):
            z = self.sum([x, y])
            classes = torch.arange(len(x)) % 4
            planes = F.cross_entropy(z[..., None], classes[:, None], label_smoothing=0.2, reduction="none")
            rows = F.nll_loss(z, classes, reduction="none")
            return {
                **_losses(z, classes, weight.to(z)),
                **{name: function(z) for name, function in BOUNDS.items()},
                "one row": F.cross_entropy(z[0], classes[0]),
                "planes": planes,
                "rows": rows,
                "of rows": rows.mean(0),
            }

    torch.manual_seed(0)
    example, others = ([torch.randn(n, 4).to(getattr(torch, dtype)) for _ in range(2)] for n in (3, 6))
    model = export(Losses().eval(), tuple(example), verify=False).model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip("xy", (x.numpy() for x in others), strict=True)))
    near = {"rtol": 1e-13, "atol": 1e-13} if dtype == "float64" else {"rtol": 4e-3, "atol": 4e-3}
    for got, (name, want) in zip(found, Losses()(*others).items(), strict=True):
        assert (got.dtype, got.shape) == (want.numpy().dtype, want.shape), name
        np.testing.assert_allclose(got, want.numpy(), **near, err_msg=str(name))


def test_integers_are_divided_as_integers():
    """Beyond 2**24, where torch's translation goes by float32."""

    class Quotients(nn.Module):
        def forward(self, x, y):
            modes = ("floor", "trunc")
            return *(torch.div(x, y, rounding_mode=mode) for mode in modes), x // 7, x // -7, x % y, torch.fmod(x, y)

    x, y = torch.tensor([[2**40 + 1, -(2**40) - 1, 7, -7, 8, -8]]), torch.tensor([[1, 1, 2, 2, -3, -3]])
    for a, b in zip(*outputs(Quotients(), x, y), strict=True):
        np.testing.assert_array_equal(a, b.numpy())
