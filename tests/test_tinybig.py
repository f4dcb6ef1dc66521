"""tinyBIG's names: each gives our class, and tinyBIG's numbers (those of 0.2.1) for tinyBIG's weights."""

import copy
import pickle

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
    assert set(NAMES) == set(dir(tinybig))
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
    assert (cls is strategy) == (name not in KRONECKER)


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
