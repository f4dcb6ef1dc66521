"""Every strategy against its reference, at more sizes than its cases have, and what each promises beyond it."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import fusion_onnx
from fusion_onnx import Case, FusionError
from fusion_onnx.fusions import _folder
from fusion_onnx.fusions._entrywise import EntrywiseFusion
from fusion_onnx.fusions._kronecker import KroneckerBase
from fusion_onnx.fusions._projection import ProjectionFusion

TRIALS = [pytest.param(n, c, id=f"{n}-{c}") for n in fusion_onnx.names() for c in fusion_onnx.get(n).cases]
ENTRYWISE = [
    n
    for n in _folder.names()
    if issubclass(_folder.load(n), EntrywiseFusion) and not _folder.load(n)().require_parameters
]
PROJECTIONS = [n for n in fusion_onnx.names() if issubclass(fusion_onnx.get(n), ProjectionFusion)]


def _data(fusion, dims, lead=(5,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(*lead, d, generator=generator, dtype=torch.float64) for d in dims]
    length = fusion.calculate_l()
    return xs, torch.randn(length, generator=generator, dtype=torch.float64) if length else None


def _reference(fusion, xs, w=None):
    """Return what the strategy's own formula gives, as a tensor."""
    with np.errstate(all="ignore"):  # as check_reference has it
        return torch.as_tensor(fusion.reference([x.numpy() for x in xs], None if w is None else w.numpy()))


def _length(fusion):
    """Evaluate the rule for l that the README's table shows, such as "r (n + D)"."""
    fixed, _, trained = fusion.rule_l.partition(", or ")
    rule = trained.removesuffix(" if trained") if trained and fusion.require_parameters else fixed
    product = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", rule)
    sizes = {"k": fusion.get_num(), "n": fusion.calculate_n(), "D": sum(fusion.dims), **vars(fusion)}
    return eval(product, {}, sizes)  # noqa: S307 - our own rules


def _agrees(y, expected):
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", fusion_onnx.names())
def test_every_strategy_gives_a_reference_which_is_as_precise_as_its_inputs(name):
    assert fusion_onnx.get(name).has_reference()
    for case in fusion_onnx.get(name).cases:
        fusion = case.create(fusion_onnx.get(name))
        xs, w = _data(fusion, case.dims)
        arrays, flat = [x.numpy() for x in xs], None if w is None else w.numpy()
        with np.errstate(all="ignore"):
            plain = fusion.reference(arrays, flat)
            wide = fusion.reference(
                [x.astype(np.longdouble) for x in arrays], None if w is None else flat.astype(np.longdouble)
            )
        assert (plain.dtype, wide.dtype) == (np.float64, np.longdouble)
        np.testing.assert_allclose(wide, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "case"), TRIALS)
def test_the_length_of_w_is_what_the_table_says(name, case):
    fusion = case.create(fusion_onnx.get(name))
    assert fusion.calculate_l() == _length(fusion)


@pytest.mark.parametrize("name", ENTRYWISE)
@pytest.mark.parametrize("k", range(1, 17))
def test_entrywise_for_every_k(name, k):
    fusion = fusion_onnx.create(name)
    xs, w = _data(fusion, [3] * k, seed=k)
    _agrees(fusion(xs, w), _reference(fusion, xs, w))


@pytest.mark.parametrize("name", ENTRYWISE)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_nan_and_infinity_stand_where_the_formula_has_them(name, k, dtype):
    fusion = fusion_onnx.create(name)
    x = torch.randn(k, 3 * k + 1, dtype=torch.float64)
    for i in range(k):
        x[i, 3 * i], x[i, 3 * i + 1], x[i, 3 * i + 2] = math.nan, math.inf, -math.inf
    x = x.to(dtype)
    y = fusion(list(x))
    expected = _reference(fusion, list(x.double()))
    assert torch.equal(y.isnan(), expected.isnan())
    assert y.isnan().sum() == k
    assert torch.equal(y.isinf(), expected.isinf())
    assert torch.equal(y.sign()[y.isinf()], expected.sign()[y.isinf()].to(dtype))


@pytest.mark.parametrize("name", PROJECTIONS)
def test_nan_in_an_input_fills_its_row_and_no_other(name):
    cls = fusion_onnx.get(name)
    for case in cls.cases:
        fusion = case.create(cls)
        for i in range(len(case.dims)):
            xs, w = _data(fusion, case.dims)
            xs[i][2, -1] = math.nan
            nan = fusion(xs, w).isnan()
            assert not nan[[0, 1, 3, 4]].any()
            reached = fusion.matrix(w.numpy(), *fusion.buffer_arrays())[:, sum(case.dims[: i + 1]) - 1] != 0
            assert nan[2].numpy()[reached].all()


# --- median -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(1, 13))
def test_median_of_all_zeros_and_ones(k):
    """A network of comparators that selects right for every 0-1 input does so for all inputs (the 0-1 principle)."""
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=k))).T
    y = fusion_onnx.create("median")(list(bits))
    assert torch.equal(y, (bits.sum(0) > k - 1 - (k - 1) // 2).float())
    assert torch.equal(y, bits.median(0).values)


@pytest.mark.parametrize("k", range(1, 21))
def test_median_against_sorting(k):
    values = torch.stack([torch.randperm(k) for _ in range(200)], dim=1).double()
    values[:, 100:] = (values[:, 100:] / 3).floor()  # with ties
    xs = list(values)
    y = fusion_onnx.create("median")(xs)
    assert torch.equal(y, values.sort(0).values[(k - 1) // 2])
    thresholds = torch.randint(0, 2, (k, 500)).float()
    assert torch.equal(fusion_onnx.create("median")(list(thresholds)), thresholds.median(0).values)


@pytest.mark.parametrize("k", range(1, 21))
def test_median_nan_in_each_position(k):
    values = torch.randn(k, k)
    clean = values.clone()
    values.fill_diagonal_(math.nan)
    fusion = fusion_onnx.create("median")
    assert fusion(list(values)).isnan().all()
    assert torch.equal(fusion(list(clean)), clean.median(0).values)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 13, 14])
def test_the_median_of_all_zeros_and_ones(k):
    """A network of comparators that is right for these is right for all values (Knuth, 5.3.4, theorem Z)."""
    values = (torch.arange(2**k) >> torch.arange(k).unsqueeze(1) & 1).float()
    y = fusion_onnx.create("median")(list(values))
    assert torch.equal(y, (values.sum(0) > k // 2).float())


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_median_of_any_numbers(values):
    y = fusion_onnx.create("median")([torch.tensor([v]) for v in values])
    assert y.item() == sorted(torch.tensor(values).tolist())[(len(values) - 1) // 2]


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l1_norm", "l2_norm"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_gradient_of_a_norm_is_finite_at_zero(name, k):
    xs = [torch.zeros(3, requires_grad=True) for _ in range(k)]
    fusion_onnx.create(name)(xs).sum().backward()
    assert all(torch.equal(x.grad, torch.zeros(3)) for x in xs)


def test_the_gradient_of_l2_is_torchs_also_beside_zeros():
    xs = [torch.tensor([0.0, 3.0, 0.0, -1.0]), torch.tensor([0.0, 4.0, 2.0, 0.0])]
    ours, theirs = ([x.clone().requires_grad_() for x in xs] for _ in range(2))
    fusion_onnx.create("l2_norm")(ours).sum().backward()
    torch.linalg.vector_norm(torch.stack(theirs), dim=0).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        _agrees(a.grad, b.grad)


def test_l2_of_one_input_neither_overflows_nor_underflows():
    x = torch.tensor([3e38, -1e-30, 1e-45])
    assert torch.equal(fusion_onnx.create("l2_norm")([x]), x.abs())


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weighted_sum_weights():
    x = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    fusion = fusion_onnx.create("weighted_sum", dims=[2, 2], weights=[1, -2])
    assert fusion(x).tolist() == [-19, -38]
    assert fusion.state_dict()["weights"].tolist() == [1, -2]
    assert fusion.calculate_l() == 0
    assert fusion_onnx.create("weighted_sum", weights=torch.tensor([2.0, 0.0]))(x).tolist() == [2, 4]
    trained = fusion_onnx.create("weighted_sum", dims=[2, 2], weights=[1.0, -2.0], require_parameters=True)
    assert trained.calculate_l() == 2
    assert trained(x, torch.tensor([[0.0, 1.0]])).tolist() == [10, 20]
    assert fusion_onnx.FusionLayer(trained)(x).tolist() == [-19, -38]
    for weights in ([1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], 3.0):
        with pytest.raises(FusionError, match="weights are 2 numbers"):
            fusion_onnx.create("weighted_sum", dims=[2, 2], weights=weights)


def test_given_weights_are_copied():
    weights = torch.ones(2)
    fusion = fusion_onnx.create("weighted_sum", weights=weights)
    weights[0] = 5
    assert fusion.weights.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["learned_weighted_sum", "weighted_sum"])
def test_a_weighted_sum_without_dims_takes_k_from_the_inputs(name):
    fusion = fusion_onnx.create(name, require_parameters=True)
    assert fusion([torch.ones(2)] * 3, torch.tensor([1.0, 2.0, 4.0])).tolist() == [7, 7]
    with pytest.raises(FusionError, match="needs its 3 parameters"):
        fusion([torch.ones(2)] * 3)
    with pytest.raises(FusionError, match="l = k; give dims"):
        fusion.calculate_l()


# --- projections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROJECTIONS)
def test_n_is_n1_where_all_widths_are_equal_and_must_be_given_elsewhere(name):
    assert fusion_onnx.create(name, dims=[4, 4]).calculate_n() == 4
    with pytest.raises(FusionError, match=r"give n, the output width; dims=\[4, 6\] are not all equal"):
        fusion_onnx.create(name, dims=[4, 6])
    with pytest.raises(FusionError, match="needs the widths of its inputs: give dims"):
        fusion_onnx.create(name, n=4)
    with pytest.raises(FusionError, match="require_parameters stays True"):
        fusion_onnx.create(name, dims=[4, 4], require_parameters=False)
    for bad in (0, -1, 2.0, "4", True):
        with pytest.raises(FusionError, match="n is a whole number from 1 up"):
            fusion_onnx.create(name, dims=[4, 4], n=bad)


@pytest.mark.parametrize("name", [n for n in PROJECTIONS if "r" in fusion_onnx.get(n).options()])
def test_the_rank_is_two_by_default_and_a_whole_number(name):
    assert fusion_onnx.create(name, dims=[4, 4]).r == 2
    for bad in (0, 1.5, None):
        with pytest.raises(FusionError, match="r is a whole number from 1 up"):
            fusion_onnx.create(name, dims=[4, 4], r=bad)


KRONECKER = [n for n in PROJECTIONS if issubclass(fusion_onnx.get(n), KroneckerBase)]


@pytest.mark.parametrize("name", KRONECKER)
def test_p_divides_n_and_q_divides_the_sum_of_dims(name):
    with pytest.raises(FusionError, match=r"p divides n; p=4 does not divide n=6. Fitting: 1, 2, 3, 6"):
        fusion_onnx.create(name, dims=[4, 8], n=6, p=4)
    with pytest.raises(FusionError, match=r"q divides D; q=5 does not divide D=12. Fitting: 1, 2, 3, 4, 6, 12"):
        fusion_onnx.create(name, dims=[4, 8], n=6, p=2, q=5)
    with pytest.raises(FusionError, match="product is 'kronecker', or 'outer'"):
        fusion_onnx.create(name, dims=[4, 8], n=6, product="inner")
    assert fusion_onnx.create(name, dims=[4, 8], n=6, p=3).q == 3
    assert fusion_onnx.create(name, dims=[4, 8], n=6).product == "kronecker"


sizes = st.integers(1, 5)


@pytest.mark.parametrize("name", KRONECKER)
@given(p=sizes, q=sizes, s=sizes, t=sizes, r=st.integers(1, 3), cut=st.integers(0, 24), outer=st.booleans())
@settings(max_examples=60, deadline=None)
def test_kronecker_of_any_sizes(name, p, q, s, t, r, cut, outer):
    total = q * t
    dims = (total,) if cut == 0 or cut >= total else (cut, total - cut)
    options = {"r": r} if "r" in fusion_onnx.get(name).options() else {}
    product = "outer" if outer else "kronecker"
    fusion = fusion_onnx.create(name, dims=dims, n=p * s, p=p, q=q, product=product, **options)
    assert fusion.calculate_l() == _length(fusion)
    xs, w = _data(fusion, dims)
    _agrees(fusion(xs, w), _reference(fusion, xs, w))


@given(
    name=st.sampled_from([n for n in PROJECTIONS if n not in KRONECKER]),
    dims=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    n=st.integers(1, 7),
    r=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_projections_of_any_sizes(name, dims, n, r):
    options = {"r": r} if "r" in fusion_onnx.get(name).options() else {}
    fusion = fusion_onnx.create(name, dims=dims, n=n, **options)
    assert fusion.calculate_l() == _length(fusion)
    xs, w = _data(fusion, dims)
    _agrees(fusion(xs, w), _reference(fusion, xs, w))


def _multiplications(fusion, case):
    xs, w = _data(fusion, case.dims, lead=(1,))
    with FlopCounterMode(display=False) as counter:
        fusion(xs, w)
    return counter.get_total_flops() // 2


def test_kronecker_takes_the_cheaper_order():
    for p, q, s, t in [(2, 8, 8, 2), (8, 2, 2, 8), (1, 16, 4, 4), (16, 1, 4, 4), (3, 5, 7, 2)]:
        case = Case(dims=(q * t,), n=p * s, p=p, q=q)
        fusion = case.create(fusion_onnx.get("kronecker_concatenation"))
        assert _multiplications(fusion, case) == min(q * s * (t + p), p * t * (q + s))


@pytest.mark.parametrize("name", ["low_rank_kronecker_concatenation", "dual_low_rank_kronecker_concatenation"])
def test_the_low_rank_forms_stay_below_their_bound(name):
    for p, q, s, t, r in [(4, 4, 16, 16, 2), (16, 16, 4, 4, 2), (8, 8, 8, 8, 1), (2, 32, 32, 2, 1)]:
        case = Case(dims=(q * t,), n=p * s, p=p, q=q, r=r)
        n, total = p * s, q * t
        bound = r * (total + p * q + n) if name.startswith("low") else r * total + r * r * (p + q) + r * n
        done = _multiplications(case.create(fusion_onnx.get(name)), case)
        assert done <= bound, (p, q, s, t, r)
        assert done < n * total


def test_outer_is_not_kronecker_and_has_rank_one_where_all_sizes_agree():
    x, w = [torch.eye(4).double()], torch.randn(8, dtype=torch.float64)
    kronecker, outer = (
        fusion_onnx.create("kronecker_concatenation", dims=[4], p=2, product=product)(x, w).T
        for product in ("kronecker", "outer")
    )
    assert torch.linalg.matrix_rank(outer) == 1
    assert torch.linalg.matrix_rank(kronecker) == 4
    assert not torch.allclose(kronecker, outer)


def test_random_matrices_are_drawn_once_from_the_seed_and_saved():
    def make(**options):
        return fusion_onnx.create("random_matrix_adaptation", dims=[40, 60], n=50, r=8, **options)

    state = torch.random.get_rng_state()
    one, same, other = make(), make(seed=0), make(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's own draws go on undisturbed
    assert torch.equal(one.a, same.a)
    assert torch.equal(one.b, same.b)
    assert not torch.equal(one.a, other.a)
    assert set(one.state_dict()) == {"a", "b"}
    assert one.a.shape == (50, 8)
    assert one.b.shape == (100, 8)
    values = torch.cat([one.a.flatten(), one.b.flatten()])
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1
    other.load_state_dict(one.state_dict())
    with pytest.raises(FusionError, match=r"not the draw of seed=1 any more.*Save the state_dict"):
        other.to_config()
    for bad in (1.5, "x", None):
        with pytest.raises(FusionError, match="seed is a whole number"):
            make(seed=bad)


def test_random_matrix_adaptation_in_half_precision_still_has_a_config():
    fusion = fusion_onnx.create("random_matrix_adaptation", dims=[4, 4]).half()
    assert fusion.to_config()["function_parameters"]["seed"] == 0


# --- metric -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(
    "metric", [lambda v: v.logsumexp(-1), lambda v: v.std(-1, correction=0), lambda v: torch.quantile(v, 0.3, dim=-1)]
)
def test_metric_of_a_callable(metric, k):
    fusion = fusion_onnx.create("metric", metric=metric)
    xs, _ = _data(fusion_onnx.create("sum"), [4] * k, lead=(2, 3))
    _agrees(fusion(xs), metric(torch.stack(xs, -1).reshape(-1, k)).reshape(2, 3, 4))
    with pytest.raises(FusionError, match="has no name that a config could hold"):
        fusion.to_config()


def test_a_metric_that_is_none_is_refused():
    with pytest.raises(FusionError, match=r"unknown metric 'no_such'; known are .*median"):
        fusion_onnx.create("metric", metric="no_such")
    for bad in (3, None, torch.nn.ReLU, "Linear"):
        with pytest.raises(FusionError, match="a metric is a name or a"):
            fusion_onnx.create("metric", metric=bad)
    with pytest.raises(FusionError, match="a function without state"):
        fusion_onnx.create("metric", metric=torch.nn.ReLU())
    with pytest.raises(FusionError, match=r"the metric reduces \(N, k\) to \(N,\); it returned \[4, 2\]"):
        fusion_onnx.create("metric", metric=lambda v: v * 2)([torch.ones(4)] * 2)
    with pytest.raises(FusionError, match="it returned tuple"):
        fusion_onnx.create("metric", metric=lambda v: tuple(v))([torch.ones(4)] * 2)
    for trained in ("learned_weighted_sum", "weighted_sum", "concatenation", "metric"):
        with pytest.raises(FusionError, match="unknown metric"):
            fusion_onnx.create("metric", metric=trained)


def test_weights_in_float64_survive_their_config():
    create, from_config = fusion_onnx.create, fusion_onnx.from_config
    fusion = create("weighted_sum", dims=[2, 2], weights=[0.1, 0.7], dtype="float64")
    xs = [torch.randn(3, 2, dtype=torch.float64) for _ in range(2)]
    assert torch.equal(fusion(xs), 0.1 * xs[0] + 0.7 * xs[1])
    assert torch.equal(from_config(json.loads(json.dumps(fusion.to_config())))(xs), fusion(xs))
    converted = create("weighted_sum", weights=torch.tensor([0.1, 0.7])).double()
    assert torch.equal(from_config(converted.to_config())(xs), converted(xs))
    with pytest.raises(FusionError, match="int8"):
        create("weighted_sum", weights=[1, 2], dtype="int8")
