"""The reference networks: their views, their training, and what they reach on held-out samples."""

import inspect
from types import ModuleType

import numpy as np
import pytest
import torch

import fusion_onnx
from models import breast_cancer, digits

MODELS = [pytest.param(digits, id="digits"), pytest.param(breast_cancer, id="breast_cancer")]
NAMES = fusion_onnx.names()
ENTRYWISE = [name for name in NAMES if fusion_onnx.get(name).equal_dims]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and the sums have one order
    yield
    torch.set_num_threads(threads)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


# --- the data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_split_holds_out_a_quarter_in_proportion(model: ModuleType):
    train, test = model.load()
    assert len(test.labels) >= 0.25 * (len(train.labels) + len(test.labels))
    for samples in (train, test):
        assert [view.shape for view in samples.views] == [(len(samples.labels), d) for d in model.DIMS]
        assert all(view.dtype == np.float32 and np.isfinite(view).all() for view in samples.views)
        assert all(view.flags.c_contiguous and view.flags.writeable for view in samples.views)
        assert samples.labels.dtype == np.int64
    shares = [np.bincount(samples.labels) / len(samples.labels) for samples in (train, test)]
    np.testing.assert_allclose(*shares, atol=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_split_and_views_are_the_same_every_time(model: ModuleType):
    for first, second in zip(model.load(), model.load(), strict=True):
        np.testing.assert_array_equal(first.labels, second.labels)
        for a, b in zip(first.views, second.views, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", MODELS)
def test_a_sample_of_the_training_set_is_not_held_out(model: ModuleType):
    train, test = ({row.tobytes() for row in np.concatenate(part.views, 1)} for part in model.load())
    assert not train & test


def test_digits_views_show_what_they_say():
    image = np.zeros((1, 8, 8))
    image[0, 2, 1:7] = 16.0  # a stroke across, in the upper half
    pixels, profiles, fourier, zones = digits.views(image)
    np.testing.assert_array_equal(pixels.reshape(8, 8), image[0] / 16)
    np.testing.assert_array_equal(profiles[0, :8], [0, 0, 0.75, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(profiles[0, 8:16], [0, *[0.125] * 6, 0])
    shifted = digits.views(np.roll(image, 3, axis=1))
    np.testing.assert_allclose(shifted[2], fourier, atol=1e-6)
    by_direction = zones.reshape(8, 2, 2)  # right, right and down, down, ...
    np.testing.assert_array_equal(by_direction[:, 1], 0)
    assert by_direction[2].sum() > by_direction[0].sum()
    assert by_direction[2].sum() == by_direction[6].sum()


def test_breast_cancer_views_are_standardised_on_the_training_split():
    train, test = breast_cancer.load()
    for view in train.views:
        np.testing.assert_allclose(view.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(view.std(0), 1, atol=1e-5)
    assert any(abs(view.mean(0)).max() > 0.01 for view in test.views)


@pytest.mark.parametrize(
    ("model", "shape"), [(digits, (8, 8)), (digits, (3, 64)), (breast_cancer, (30,)), (breast_cancer, (3, 10))]
)
def test_views_of_the_wrong_shape_are_refused(model: ModuleType, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"got shape \(\d+"):
        model.views(np.zeros(shape))


@pytest.mark.parametrize("model", MODELS)
def test_no_samples_give_no_views(model: ModuleType):
    raw = np.zeros((0, 8, 8) if model is digits else (0, 30))
    assert [view.shape for view in model.views(raw)] == [(0, d) for d in model.DIMS]


# --- the networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("model", MODELS)
def test_every_strategy_builds_and_takes_the_example_inputs(model: ModuleType, strategy: str):
    network, inputs = model.build(strategy), model.example_inputs()
    assert len(inputs) == len(inspect.signature(network.forward).parameters) == len(model.DIMS)
    assert network.fusion.fusion.strategy() == strategy
    logits = network(*inputs)
    assert logits.shape == (5, 10 if model is digits else 2)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("strategy", NAMES)
def test_every_strategy_acts_on_the_breast_cancer_views_themselves(strategy: str):
    network = breast_cancer.build(strategy, width=None)
    inputs = breast_cancer.example_inputs(3)
    w = network.fusion.w
    expected = network.classifier(network.fusion.fusion(list(inputs), w))
    torch.testing.assert_close(network(*inputs), expected, rtol=0, atol=0)


def test_entrywise_strategies_are_among_those():
    assert {"sum", "median", "metric"} <= set(ENTRYWISE) < set(NAMES)


def test_options_reach_the_strategy():
    fusion = digits.build("low_rank_kronecker_concatenation", width=24, p=3, q=4, r=5).fusion.fusion
    assert (fusion.dims, fusion.n, fusion.p, fusion.q, fusion.r) == ((24,) * 4, 24, 3, 4, 5)
    assert digits.build("low_rank_concatenation").fusion.fusion.r == 8
    with pytest.raises(fusion_onnx.FusionError, match="no option 'rank'"):
        digits.build("low_rank_concatenation", rank=3)
    with pytest.raises(fusion_onnx.FusionError, match="all inputs have one width"):
        digits.build("sum", width=None)


@pytest.mark.parametrize("model", MODELS)
def test_networks_export_with_their_fusion_as_one_op(model: ModuleType):
    program = torch.export.export(model.build("median").eval(), model.example_inputs())
    ops = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [op for op in ops if op.startswith("fusion_onnx.")] == ["fusion_onnx.median.default"]
    names = program.graph_signature.user_inputs
    assert list(names) == list(inspect.signature(model.build().forward).parameters)


# --- the training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["max", "dual_low_rank_kronecker_concatenation"])
@pytest.mark.parametrize("model", MODELS)
def test_a_short_training_lowers_the_loss(model: ModuleType, strategy: str):
    train = model.load().train

    def loss(network: torch.nn.Module) -> float:
        logits = torch.tensor(model.predict(network, train.views))
        return torch.nn.functional.cross_entropy(logits, torch.tensor(train.labels)).item()

    steps: list[tuple[int, int]] = []
    trained = model.train(strategy, epochs=3, progress=lambda epoch, epochs: steps.append((epoch, epochs)))
    assert loss(trained) < 0.7 * loss(model.build(strategy))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert not trained.training


@pytest.mark.parametrize("model", MODELS)
def test_the_seed_decides_the_weights_and_nothing_else_does(model: ModuleType):
    before = torch.random.get_rng_state()
    first = weights(model.train(epochs=2, seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(weights(model.train(epochs=2, seed=3)), first)
    assert not torch.equal(weights(model.train(epochs=2, seed=4)), first)
    assert torch.equal(weights(model.build(seed=3)), weights(model.train(epochs=0, seed=3)))


@pytest.mark.parametrize(("model", "least"), [(digits, 0.97), (breast_cancer, 0.93)])
@pytest.mark.parametrize("strategy", ["median", "low_rank_concatenation"])
def test_a_trained_network_is_right_about_held_out_samples(model: ModuleType, least: float, strategy: str):
    test = model.load().test
    logits = model.predict(model.train(strategy), test.views)
    assert logits.dtype == np.float32
    assert model.accuracy(logits, test.labels) >= least


def test_accuracy():
    logits = np.array([[0.1, 0.9], [2.0, 1.0], [-3.0, -2.0], [0.0, 1.0]])
    assert digits.accuracy(logits, [1, 0, 1, 0]) == 0.75
    assert digits.accuracy(torch.tensor(logits), torch.tensor([1, 0, 1, 1])) == 1.0
