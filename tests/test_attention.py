"""Attention that is exported computes eager's numbers: masks of every form, queries without a valid key, NaN."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusion_onnx import FusionLayer, Session, create, export

NAN, INF = float("nan"), float("inf")
LOWEST = torch.finfo(torch.float32).min
OPSETS = [18, 23, 26, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (20, 22, 24, 25))]
SIZES = [(2, 3, 5), (1, 1, 1), (3, 5, 3), (2, 1, 4), (2, 4, 1), (2, 3, 20)]


class Attend(nn.Module):
    """Attention over y, then a fusion with x."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.merge = FusionLayer(create("sum", dims=[8, 8]))

    def forward(self, x, y, mask=None):
        return self.merge(x, F.scaled_dot_product_attention(x, y, y, attn_mask=mask, **self.options))


def draw(batch, queries, keys, heads=(2, 2)):
    return torch.randn(batch, heads[0], queries, 8), torch.randn(batch, heads[1], keys, 8)


def of_file(model, args):
    """Return what ONNX Runtime itself makes of the model."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {info.name: arg.numpy() for info, arg in zip(session.get_inputs(), args, strict=True)}
    return session.run(None, feed)


def check(module, model, args):
    with torch.no_grad():
        wanted = module(*args)
    for want, got in zip(wanted if isinstance(wanted, tuple) else (wanted,), of_file(model, args), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5)


def axes(mask_axes=None):
    found = {"x": {0: "batch", 2: "queries"}, "y": {0: "batch", 2: "keys"}}
    return found if mask_axes is None else {**found, "mask": mask_axes}


def masks(kind, batch, queries, keys):
    """Yield masks: all keys valid, some, one, none; and what only a float mask can hold."""
    some = torch.rand(batch, 1, queries, keys) > 0.5
    some[..., 0] = True
    one = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    one[..., -1] = True
    none = some.clone()
    none[0] = False
    found = [torch.ones_like(some), some, one, none, torch.zeros_like(some)]
    if kind == "bool":
        return found
    found = [torch.randn(mask.shape).masked_fill(~mask, -INF) for mask in found]
    spoilt = found[1].clone()
    spoilt[0] = -INF
    spoilt[0, ..., 0] = NAN
    padded = found[1].clone()
    padded[0, ..., :] = LOWEST
    both = padded.clone()
    both[0, ..., 0] = -INF
    return [*found, spoilt, padded, both]


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("opset", OPSETS)
def test_masks(kind, opset):
    """Each number of valid keys, none too, at each size; a query without a valid key takes nothing."""
    torch.manual_seed(0)
    module, args = Attend(), draw(2, 3, 5)
    mask = masks(kind, 2, 3, 5)[0]
    model = export(
        module, (*args, mask), dynamic=axes({0: "batch", 2: "queries", 3: "keys"}), opset=opset, verify=False
    ).model
    for sizes in SIZES:
        x, y = draw(*sizes)
        for mask in masks(kind, *sizes):
            check(module, model, (x, y, mask))
    got = of_file(model, (x, y, masks(kind, *sizes)[4]))
    assert (got[0] == x.numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "mask_axes"),
    [
        ("b1", {0: "batch", 3: "keys"}),
        ("lk", {0: "queries", 1: "keys"}),
        ("l1", {0: "queries"}),
    ],
)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_broadcast_masks(kind, shape, mask_axes):
    """A mask that has no heads, no queries, no keys, or no batch."""
    torch.manual_seed(1)

    def of_shape(mask):
        return {"b1": mask[:, :, :1], "lk": mask[0, 0], "l1": mask[0, 0, :, :1]}[shape]

    module, args = Attend(), draw(2, 3, 5)
    given = of_shape(masks(kind, 2, 3, 5)[0])
    model = export(module, (*args, given), dynamic=axes(mask_axes), verify=False).model
    for sizes in SIZES:
        for mask in masks(kind, *sizes):
            check(module, model, (*draw(*sizes), of_shape(mask)))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_nan(kind):
    """NaN in a query, a key or a value, at queries with valid keys and without, is eager's NaN; Inf in a value too."""
    torch.manual_seed(2)
    module, args = Attend(), draw(2, 3, 5)
    everywhere = axes({0: "batch", 2: "queries", 3: "keys"})
    model = export(module, (*args, masks(kind, 2, 3, 5)[0]), dynamic=everywhere, verify=False).model
    for mask in masks(kind, 2, 3, 5):
        for spoilt in (NAN, INF, -INF):
            for i in (0, 1):
                args = draw(2, 3, 5)
                args[i][0, 0, 1] = spoilt
                check(module, model, (*args, mask))


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"enable_gqa": True},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"scale": -0.3}, marks=pytest.mark.slow),
        pytest.param({"scale": 2.0, "is_causal": True, "enable_gqa": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "opset", [18, pytest.param(23, marks=pytest.mark.slow), pytest.param(26, marks=pytest.mark.slow)]
)
def test_options(options, opset):
    """Causal attention with more queries than keys and with fewer, groups of heads, a scale; NaN in each input."""
    torch.manual_seed(3)
    heads = (4, 2) if "enable_gqa" in options else (4, 4)
    module = Attend(**options)
    model = export(module, draw(2, 3, 5, heads), dynamic=axes(), opset=opset, verify=False).model
    for sizes in SIZES:
        check(module, model, draw(*sizes, heads))
    for i in (0, 1):
        args = draw(2, 3, 20, heads)  # with fewer keys than its vectors hold, eager gives 0 where a query is NaN
        args[i][0, 0, 1] = NAN
        check(module, model, args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes(dtype):
    """Scale and mask have the dtype of the query, in all its digits."""
    torch.manual_seed(4)
    module, args = Attend(), [x.to(dtype) for x in draw(2, 3, 5)]
    some = masks("bool", 2, 3, 5)[3]
    (got,) = of_file(export(module, (*args, some), verify=False).model, (*args, some))
    want = module(*args, some).numpy()
    few = 8 * torch.finfo(dtype).eps
    np.testing.assert_allclose(got, want, rtol=few, atol=few)


class Padded(nn.Module):
    """nn.MultiheadAttention over y, of which some is padding, and a mask of its own."""

    def __init__(self, weights, mask=None, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, **options)
        self.weights, self.mask = weights, mask

    def forward(self, x, y, pad):
        time = 1 if self.attend.batch_first else 0
        later = torch.ones(x.shape[time], y.shape[time], dtype=torch.bool).triu(1)
        mask = later if self.mask == "bool" else None
        if self.mask == "float":
            mask, pad = (torch.zeros(m.shape).masked_fill(m, -INF) for m in (later, pad))
        seen, weights = self.attend(x, y, y, key_padding_mask=pad, attn_mask=mask, need_weights=self.weights)
        return (seen, weights) if self.weights else seen


class Layer(nn.Module):
    """A layer of a transformer over y, of which some is padding."""

    def __init__(self, layer, **options):
        super().__init__()
        self.layer = layer(8, 2, 16, batch_first=True, **options)

    def forward(self, x, y, pad):
        if isinstance(self.layer, nn.TransformerDecoderLayer):
            return self.layer(x, y, memory_key_padding_mask=pad)
        return self.layer(y, src_key_padding_mask=pad) + x.sum()


class Written(nn.Module):
    """Attention by hand: eager's softmax of −∞ alone is NaN."""

    def __init__(self, fill):
        super().__init__()
        self.fill = fill

    def forward(self, x, y, pad):
        return (x @ y.mT).masked_fill(pad[:, None], self.fill).softmax(-1) @ y


SLOW = [
    *(
        lambda w=weights, m=mask, b=first: Padded(w, m, batch_first=b)
        for weights in (False, True)
        for mask in (None, "bool", "float")
        for first in (False, True)
    ),
    *(
        lambda w=weights, o=option: Padded(w, batch_first=True, **{o: True})
        for weights in (False, True)
        for option in ("add_zero_attn", "add_bias_kv")
    ),
    lambda: Layer(nn.TransformerEncoderLayer),
    lambda: Layer(nn.TransformerEncoderLayer, norm_first=True),
    lambda: Layer(nn.TransformerDecoderLayer),
    lambda: Written(LOWEST),
]


@pytest.fixture
def without_fast_path():
    """Leave out torch's fused layer, which gives NaN for a sample that is all padding; torch.export never takes it."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Padded(False, batch_first=True),
        lambda: Padded(True, batch_first=True),
        lambda: Written(-INF),
        *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW),
    ],
)
@pytest.mark.parametrize("opset", [18, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (23, 26))])
@pytest.mark.usefixtures("without_fast_path")
def test_missing_modality(make, opset):
    """A sample that is all padding, beside others, and NaN in the padding."""
    torch.manual_seed(5)
    module = make().eval()
    first = not isinstance(module, Padded) or module.attend.batch_first

    def args(batch, queries, keys):
        x, y = torch.randn(batch, queries, 8), torch.randn(batch, keys, 8)
        pad = torch.rand(batch, keys) > 0.7
        pad[:, 0] = False
        return x if first else x.transpose(0, 1), y if first else y.transpose(0, 1), pad

    x, y = ({0: "batch", 1: name} if first else {0: name, 1: "batch"} for name in ("queries", "keys"))
    dynamic = {"x": x, "y": y, "pad": {0: "batch", 1: "keys"}}
    model = export(module, args(3, 4, 5), dynamic=dynamic, opset=opset, verify=False).model
    for sizes in ((3, 4, 5), (1, 1, 1), (2, 6, 20)):
        given = args(*sizes)
        check(module, model, given)
        given[2][0] = True
        check(module, model, given)
        given[1][0, 0] = NAN
        check(module, model, given)


def test_a_missing_modality_in_a_session():
    """The way from export to Session: verified, and right for a sample without a valid key."""
    torch.manual_seed(6)
    module, args = Attend(), draw(2, 3, 5)
    mask = masks("bool", 2, 3, 5)
    result = export(module, (*args, mask[1]))
    assert result.verdict.passed
    (got,) = Session(result.model, providers="cpu").run(*(x.numpy() for x in (*args, mask[3])))
    np.testing.assert_allclose(got, module(*args, mask[3]).numpy(), rtol=1e-5, atol=1e-5)


def test_dropout_that_stays_on_is_refused():
    """The functional form drops in eval mode too, where its caller forgets to ask."""
    with pytest.raises(ValueError, match=r"dropout_p=0\.5"):
        export(Attend(dropout_p=0.5), draw(2, 3, 5), verify=False)
