"""FusionLayer: it owns the parameters, starts them well, and they train."""

import copy

import pytest
import torch

import fusion_onnx
from fusion_onnx import FusionError, FusionLayer

PARAMETRIC = [n for n in fusion_onnx.names() if fusion_onnx.create(n, dims=[4, 4]).calculate_l()]


@pytest.mark.parametrize("name", PARAMETRIC)
def test_it_learns(name):
    torch.manual_seed(0)
    layer = FusionLayer(fusion_onnx.create(name, dims=[4, 4]))
    x = [torch.randn(64, 4) for _ in range(2)]
    with torch.no_grad():
        goal = FusionLayer(fusion_onnx.create(name, dims=[4, 4]), init=torch.nn.init.normal_)(*x)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (layer(x) - goal).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", PARAMETRIC)
def test_it_owns_w(name):
    fusion = fusion_onnx.create(name, dims=[4, 4])
    layer = FusionLayer(fusion)
    assert isinstance(layer.w, torch.nn.Parameter)
    assert layer.w.shape == (1, fusion.calculate_l())
    assert "w" in layer.state_dict()
    x = [torch.randn(3, 4) for _ in range(2)]
    assert torch.equal(layer(x), fusion(x, layer.w))
    assert torch.equal(layer(*x), layer(tuple(x)))
    other = FusionLayer(fusion_onnx.create(name, dims=[4, 4]), init=torch.nn.init.ones_)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in PARAMETRIC if "concatenation" in n or "adaptation" in n]
    + [(n, {"product": "outer"}) for n in PARAMETRIC if "product" in fusion_onnx.get(n).options()],
)
def test_it_starts_as_a_linear_layer_does(name, options):
    """Entries of the effective W have mean 0 and variance 1 / (3 D), as torch.nn.Linear's."""
    torch.manual_seed(1)
    dims, n = (16, 16), 32
    squares = []
    for seed in range(40):
        seeded = {"seed": seed} if "seed" in fusion_onnx.get(name).options() else {}
        layer = FusionLayer(fusion_onnx.create(name, dims=dims, n=n, **options, **seeded))
        with torch.no_grad():
            w = layer(list(torch.eye(32).split(16, dim=1)))
        squares.append(w.square().mean().item())
    assert sum(squares) / len(squares) == pytest.approx(1 / (3 * 32), rel=0.25)


def test_a_sum_starts_as_a_mean():
    for name in ("learned_weighted_sum", "weighted_sum"):
        layer = FusionLayer(fusion_onnx.create(name, dims=[2, 2, 2, 2], require_parameters=True))
        assert layer.w.tolist() == [[0.25] * 4]


def test_init():
    fusion = fusion_onnx.create("learned_weighted_sum", dims=[2, 2])
    assert FusionLayer(fusion, init=[3.0, 4.0]).w.tolist() == [[3, 4]]
    assert FusionLayer(fusion, init=torch.tensor([[3.0, 4.0]])).w.tolist() == [[3, 4]]
    assert FusionLayer(fusion, init=torch.nn.init.zeros_).w.tolist() == [[0, 0]]
    with pytest.raises(FusionError, match="init has l = 2 values; got 3"):
        FusionLayer(fusion, init=[1.0, 2.0, 3.0])
    layer = FusionLayer(fusion, init=[3.0, 4.0])
    layer.reset_parameters()
    assert layer.w.tolist() == [[0.5, 0.5]]
    assert layer.w.requires_grad


def test_without_parameters():
    layer = FusionLayer(fusion_onnx.create("median"))
    assert layer.w is None
    assert list(layer.parameters()) == []
    assert layer(torch.ones(2), torch.zeros(2), torch.zeros(2)).tolist() == [0, 0]
    layer.reset_parameters()


def test_bad_layers():
    with pytest.raises(FusionError, match="owns the parameters of a Fusion; got Linear"):
        FusionLayer(torch.nn.Linear(2, 2))
    with pytest.raises(FusionError, match="l = k; give dims"):
        FusionLayer(fusion_onnx.create("learned_weighted_sum"))
    with pytest.raises(FusionError, match="got an empty tuple"):
        FusionLayer(fusion_onnx.create("sum"))()


def test_it_follows_to_and_compiles_and_exports():
    layer = FusionLayer(fusion_onnx.create("random_matrix_adaptation", dims=[4, 4])).double()
    x = [torch.randn(3, 4).double() for _ in range(2)]
    assert layer(x).dtype == torch.float64
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    program = torch.export.export(layer, (x,))
    assert sum("fusion_onnx.random_matrix_adaptation" in str(n.target) for n in program.graph.nodes) == 1
