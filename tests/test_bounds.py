"""The derived bounds: they hold against the references, they are not vacuous, and infinite only by overflow."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import fusion_onnx
from fusion_onnx import Case, Fusion, create, export, verify
from fusion_onnx.contract.rounding import Arithmetic
from fusion_onnx.verification import battery
from fusion_onnx.verification.tolerance import BITS, DERIVED, MEASURED, array, derived
from tests.ratios import arguments

LONG = np.longdouble
BETTER = np.finfo(LONG).eps < np.finfo(np.float64).eps / 512
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _bounded(name):
    """Whether a strategy states a bound, which it need not."""
    case = fusion_onnx.get(name).cases[0]
    fusion = case.create(fusion_onnx.get(name))
    xs, *w = arguments(fusion, 1, torch.float64, torch.Generator())
    return derived(fusion.in_form(), xs, w[0] if w else None) is not None


BOUNDED = [name for name in fusion_onnx.names() if _bounded(name)]
TRIALS = [
    pytest.param(name, case, dtype, id=f"{name}-{case}-{str(dtype)[6:]}")
    for name in BOUNDED
    for i, case in enumerate(fusion_onnx.get(name).cases)
    for dtype in (DTYPES if i == 0 else [torch.float32])  # no rule couples a width with a dtype
]


def exact(fusion, xs, w):
    """Return the strategy's reference in long double, with the buffers that the inputs' dtype sees."""
    as_seen = copy.deepcopy(fusion).to(xs[0].dtype)
    values = [x.double().numpy().astype(LONG) for x in xs]
    return as_seen.reference(values, None if w is None else w.double().numpy().astype(LONG))


@pytest.mark.parametrize(("name", "case", "dtype"), TRIALS)
def test_bound_holds_on_the_battery(name, case, dtype):
    if dtype == torch.float64 and not BETTER:
        pytest.skip("no type here is more precise than float64")
    fusion = case.create(fusion_onnx.get(name))
    generator = torch.Generator().manual_seed(0)
    given, *w = arguments(fusion, 9, dtype, generator)
    flat = w[0] if w else None
    for label, xs in battery.values(given, [f"x{i}" for i in range(len(given))]):
        tolerance = derived(fusion.in_form(), xs, flat)
        eager = array(fusion(xs, flat)).astype(LONG)
        with np.errstate(invalid="ignore", over="ignore"):
            truth = exact(fusion, xs, flat)
            off = np.abs(eager - truth)
        comparable = np.isfinite(eager) & np.isfinite(truth)
        bad = comparable & (off > tolerance.reference)
        assert not bad.any(), (label, off[bad][0], tolerance.reference[bad][0])
        assert not np.isnan(tolerance.allowed).any()
        assert (tolerance.allowed >= 0).all()


@pytest.mark.parametrize(("name", "case", "dtype"), TRIALS)
def test_infinite_only_where_sums_of_sizes_reach_the_limit(name, case, dtype):
    fusion = case.create(fusion_onnx.get(name))
    given, *w = arguments(fusion, 9, dtype, torch.Generator().manual_seed(0))
    flat = w[0] if w else None
    for label, xs in battery.values(given, [f"x{i}" for i in range(len(given))]):
        free = np.isinf(derived(fusion.in_form(), xs, flat).allowed)
        if label not in ("huge", "overflow", "mixed magnitudes", "large, 1e4"):
            assert not free.any(), label
        size = fusion([4 * x.abs().float() if dtype != torch.float64 else 4 * x.abs() for x in xs], _size(flat, dtype))
        assert not (free & np.isfinite(array(size)) & _all_positive(fusion)).any(), label


def _size(w, dtype):
    return None if w is None else (w.abs() if dtype == torch.float64 else w.abs().float())


def _all_positive(fusion):
    return all((b >= 0).all() for b in fusion._buffers.values() if b is not None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_spoilt_row_leaves_the_others_bounds_alone(name, dtype, value):
    case = fusion_onnx.get(name).cases[0]
    fusion = case.create(fusion_onnx.get(name))
    xs, *w = arguments(fusion, 5, dtype, torch.Generator().manual_seed(0))
    flat = w[0] if w else None
    before = derived(fusion.in_form(), xs, flat).allowed
    xs[0][2] = value
    after = derived(fusion.in_form(), xs, flat).allowed
    assert np.isfinite(after).all()
    others = [0, 1, 3, 4]
    # what underflows is bounded for all rows together, by the largest
    np.testing.assert_allclose(after[others], before[others], rtol=1e-9)


# --- not vacuous: inputs that make every rounding go one way ------------------------------------------------------


def _one_way(k, dtype):
    """Return 1, and k - 1 values of just under half an ulp of it: each sum rounds back to 1, and loses all of it."""
    u = Arithmetic(dtype).u
    return [torch.ones(1, 1, dtype=dtype), *[torch.full((1, 1), u * (1 - 4 * u), dtype=dtype) for _ in range(k - 1)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [2, 5, 64, 500])
@pytest.mark.parametrize(("name", "most"), [("sum", 1.1), ("l1_norm", 1.1), ("mean", 3.3), ("weighted_sum", 2.2)])
def test_bound_of_sums_is_reached(name, most, k, dtype):
    xs = _one_way(k, dtype)
    fusion = create(name, dims=[1] * k)
    off = np.abs(array(fusion(xs)).astype(LONG) - exact(fusion, xs, None))
    bound = derived(fusion.in_form(), xs, None).reference
    assert (off <= bound).all()
    assert (bound <= most * off).all()


@pytest.mark.parametrize("k", [2, 8, 32])
def test_bound_of_products_is_near_what_random_factors_reach(k):
    xs = [1 + torch.rand(200_000, 1, generator=torch.Generator().manual_seed(i)) / 64 for i in range(k)]
    fusion = create("prod", dims=[1] * k)
    off = np.abs(array(fusion(xs)) - exact(fusion, xs, None)).astype(np.float64)
    assert (derived(fusion.in_form(), xs, None).reference / off.max()).min() < 4


@pytest.mark.parametrize("total", [4, 64, 500])
def test_bound_of_inner_products_is_reached_by_one_order(total):
    xs = _one_way(total, torch.float32)
    fusion = create("linear_concatenation", dims=[1] * total, n=1)
    bound = derived(fusion.in_form(), xs, torch.ones(total)).reference
    y = xs[0]
    for x in xs[1:]:
        y = y + x
    off = abs(float(y) - math.fsum(float(x) for x in xs))
    assert off <= float(bound.item()) <= 1.5 * off * total / (total - 1)


@pytest.mark.parametrize("total", [4096, 65536])
def test_bound_of_long_inner_products_holds_in_whatever_order(total):
    fusion = create("linear_concatenation", dims=[total], n=1)
    for value in (0.1, 0.3, 0.9):
        x = np.full(total, value, dtype=np.float32)
        in_order = float(np.cumsum(x)[-1])
        bound = derived(fusion.in_form(), [torch.from_numpy(x)[None]], torch.ones(total)).reference
        assert abs(in_order - total * float(x[0])) <= float(bound.item())


def test_undetermined_where_the_last_rounding_may_overflow():
    fusion = create("linear_concatenation", dims=[2], n=1)
    x = torch.tensor([[65504.0, 15.9990234375]], dtype=torch.float16)  # 65520, less or more, is rounded to 65504 or inf
    edge = torch.tensor([[65504.0, 16.0]], dtype=torch.float16)
    for row in (x, edge):
        assert np.isinf(derived(fusion.in_form(), [row], torch.ones(2, dtype=torch.float16)).allowed).all()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_share_of_weighted_sums_is_that_of_k_roundings(k):
    fusion = create("weighted_sum", dims=[1] * k)
    xs = [torch.ones(1, 1, dtype=torch.float64)] * k
    bound = Fraction(derived(fusion.in_form(), xs, None).reference.item()) / k
    u = Fraction(Arithmetic(torch.float64).u)
    assert (1 + u) ** k - 1 <= bound <= 2 * k * u


# --- the arithmetic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "info"),
    [(torch.float16, np.finfo(np.float16)), (torch.float32, np.finfo(np.float32)), (torch.float64, np.finfo(float))],
    ids=str,
)
def test_arithmetic_is_that_of_numpy(dtype, info):
    arithmetic = Arithmetic(dtype)
    assert arithmetic.u == float(info.eps) / 2
    assert arithmetic.eta == float(info.smallest_subnormal)
    one = info.dtype.type(1)
    assert one + info.dtype.type(arithmetic.u) == one < one + info.dtype.type(2 * arithmetic.u)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 15, 100])
def test_gamma_is_what_n_roundings_lose(dtype, n):
    u = Fraction(Arithmetic(dtype).u)
    exactly = n * u / (1 - n * u)
    gamma = Arithmetic(dtype).gamma(n)
    assert abs(Fraction(gamma) - exactly) <= exactly * Fraction(1, 2**50)
    assert (1 + u) ** n - 1 <= exactly
    assert 1 - (1 - u) ** n <= exactly


@pytest.mark.parametrize(("dtype", "n"), [(torch.float16, 2048), (torch.float16, 3000), (torch.bfloat16, 256)])
def test_gamma_is_infinite_where_n_roundings_may_lose_all(dtype, n):
    assert Arithmetic(dtype).gamma(n) == math.inf


# --- strategies without a bound -----------------------------------------------------------------------------------


class Blend(Fusion):
    equal_dims = True
    cases = (Case(dims=(3, 3)),)

    def calculate_n(self, dims=None):
        return 3

    def calculate_l(self):
        return 0

    def fuse(self, xs, w, *buffers):
        return xs[0] * 0.3 + xs[1] * 0.7

    def decompose(self, op, xs, w, *buffers):
        return op.Add(op.Mul(xs[0], op.constant(0.3)), op.Mul(xs[1], op.constant(0.7)))


@pytest.mark.parametrize("options", [{}, {"preprocess_functions": "relu"}, {"postprocess_functions": "relu"}], ids=str)
def test_a_users_strategy_without_a_bound_is_measured(options):
    fusion = Blend(dims=[3, 3], **options)
    args = arguments(fusion, 4, torch.float32, torch.Generator().manual_seed(0))
    assert derived(fusion.in_form(), *args, None) is None
    verdict = verify(fusion, export(fusion, args).model, args, battery=True)
    assert verdict.passed, verdict.reasons
    assert verdict.rule == MEASURED


@pytest.mark.parametrize("name", ["sum", "l2_norm", "linear_concatenation"])
def test_preprocess_functions_are_measured_and_no_bound_is_taken_for_them(name):
    plain = create(name, dims=[4, 4])
    around = create(name, dims=[4, 4], preprocess_functions="tanh")
    args = arguments(plain, 4, torch.float32, torch.Generator().manual_seed(0))
    for fusion, rule in ((plain, BITS if plain.bitwise else DERIVED), (around, MEASURED)):
        assert verify(fusion, export(fusion, copy.deepcopy(args), verify=False).model, args).rule == rule
