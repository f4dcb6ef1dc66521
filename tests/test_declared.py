"""Declared shapes: what one run of a model can show to be false, and what export declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusion_onnx import Session, export
from fusion_onnx.runtime import TensorInfo
from fusion_onnx.verification.shapes import false_shapes

AXES = {0: "batch", 1: "time"}


def info(name: str, *shape: int | str | None) -> TensorInfo:
    """Return what a model declares of a float32 tensor."""
    return TensorInfo(name, "float32", shape)


@pytest.mark.parametrize(
    ("declared", "size"),
    [((5, 4), (5, 4)), (("batch", 4), (3, 4)), ((None, "time"), (7, 9)), (("other", "other"), (6, 6))],
)
def test_true_shapes(declared: tuple[int | str | None, ...], size: tuple[int, ...]) -> None:
    """A number that is the size, a name with one size, an axis without a name: nothing is false."""
    assert false_shapes([info("x", "batch", 4)], [info("y", *declared)], [(3, 4)], [size]) == []


@pytest.mark.parametrize(
    ("declared", "size", "words"),
    [
        ((5, 4), (6, 4), "axis 0 of y is declared as 5 and has the size 6."),
        (("batch", 4), (6, 4), "axis 0 of y is declared as 'batch', which is 3 at axis 0 of x, and has 6."),
        (("n", "n"), (6, 7), "axis 1 of y is declared as 'n', which is 6 at axis 0 of y, and has 7."),
        ((3, 4), (3, 4, 1), "y: float32[3, 4] has 3 axes, [3, 4, 1]."),
    ],
)
def test_false_shapes(declared: tuple[int | str | None, ...], size: tuple[int, ...], words: str) -> None:
    """Each false axis has a sentence that names it, what is declared and what came out."""
    assert false_shapes([info("x", "batch", 4)], [info("y", *declared)], [(3, 4)], [size]) == [words]


def test_a_name_is_bound_across_outputs() -> None:
    """An output's own name counts at the outputs behind it."""
    found = false_shapes([], [info("a", "n"), info("b", "n"), TensorInfo("c", "float32", None)], [], [(2,), (3,), (4,)])
    assert found == ["axis 0 of b is declared as 'n', which is 2 at axis 0 of a, and has 3."]


def test_every_tensor_has_a_shape() -> None:
    """Fewer shapes than tensors are an error of the caller's."""
    with pytest.raises(ValueError, match="zip"):
        false_shapes([], [info("y", 1)], [], [])


class Of(nn.Module):
    """What a function makes of x (batch, time, 4), with a layer of its own where it needs one."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: torch.Tensor) -> Any:
        """Return function(x), or function(layer, x)."""
        return self.function(x) if self.layer is None else self.function(self.layer, x)


def within(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[TensorInfo]]:
    """Return a model that gives what is declared inside a model too, and what is declared of it."""
    outer = onnx.ModelProto()
    outer.CopyFrom(model)
    infos = []
    for value in [v for v in model.graph.value_info if v.type.tensor_type.elem_type]:
        tensor = value.type.tensor_type
        outer.graph.output.add(name=value.name).type.tensor_type.elem_type = tensor.elem_type
        sizes = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
        infos.append(TensorInfo(value.name, "", tuple(sizes) if tensor.HasField("shape") else None))
    return outer, infos


def check(module: nn.Module, axes: dict[int, str] = AXES, time: int = 6) -> Session:
    """Export; hold what the file declares of its outputs and of what is inside against runs at other sizes."""
    torch.manual_seed(0)
    module.eval()
    model = export(module, (torch.randn(3, time, 4),), dynamic={"x": axes}, verify=False).model
    session, (outer, infos) = Session(model, providers="cpu"), within(model)
    inner = onnxruntime.InferenceSession(outer.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in ((3, time, 4), (2, time + 3, 4), (5, time + 2, 4), (1, time - 1, 4)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = torch.utils._pytree.tree_leaves(module(x))
        got = session.run(x.numpy())
        for want, array in zip(wanted, got, strict=True):
            np.testing.assert_allclose(array, want.numpy(), rtol=1e-5, atol=1e-5)
        assert false_shapes(session.inputs, session.outputs, [shape], [array.shape for array in got]) == []
        inside = inner.run([info.name for info in infos], {"x": x.numpy()}) if infos else []
        assert false_shapes(session.inputs, infos, [shape], [array.shape for array in inside]) == []
    return session


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers(layer: type[nn.LSTM]) -> None:
    """The time axis of the output is the input's, and a bound call takes another length; one process, two exports."""
    module = Of(lambda layer, x: layer(x)[0], layer(4, 3, batch_first=True))
    session = check(module)
    assert session.outputs[0].shape == ("batch", "time", 3)
    x = torch.randn(6, 9, 4)
    with torch.no_grad():
        np.testing.assert_allclose(session.bind(x.numpy())()[0], module(x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_others_export_recurrent_layers_too() -> None:
    """What a process made of an LSTM by torch itself counts for nothing here, and the reverse."""
    module = Of(lambda layer, x: layer(x)[0], nn.LSTM(4, 3)).eval()

    def operators() -> list[str]:
        graph = torch.export.export(module, (torch.randn(2, 2, 4),)).run_decompositions().graph
        return [str(node.target) for node in graph.nodes]

    before = operators()
    torch.onnx.export(module, (torch.randn(3, 6, 4),), dynamo=True, dynamic_shapes=({0: "a", 1: "b"},), verbose=False)
    check(module)
    assert operators() == before


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("axes", [{0: "batch", 1: "time"}, {0: "batch"}, {1: "time"}, {}], ids=str)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_forms(layer: type[nn.LSTM], first: bool, axes: dict[int, str], options: dict[str, Any]) -> None:
    """Both directions, two layers, time in front, one axis static: outputs and last states."""
    module = Of(lambda layer, x: layer(x), layer(4, 3, batch_first=first, **options)).eval()
    if axes == AXES:
        check(module)
        return
    model = export(module, (torch.randn(3, 6, 4),), dynamic={"x": axes}).model
    session = Session(model, providers="cpu")
    shape = [3, 6, 4]
    for axis in axes:
        shape[axis] += 2
    assert (
        false_shapes(
            session.inputs, session.outputs, [shape], [y.shape for y in session.run(torch.randn(shape).numpy())]
        )
        == []
    )


def test_a_size_that_depends_on_data() -> None:
    """It has a name of its own."""
    session = check(Of(lambda x: (torch.nonzero(x > 0), x[x > 0.5])))
    batch, features = session.inputs[0].shape or (), 3
    rows = [info.shape for info in session.outputs]
    assert rows[0] is not None and rows[0][1] == features
    assert not {rows[0][0], (rows[1] or ())[0]} & set(batch)


OPERATORS: dict[str, Of] = {
    "convolution": Of(lambda layer, x: layer(x.mT), nn.Conv1d(4, 2, 3, stride=2, padding=1, dilation=2)),
    "transposed": Of(lambda layer, x: layer(x.mT), nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1)),
    "pool": Of(lambda x: F.avg_pool1d(x.mT, 3, 2, ceil_mode=True)),
    "interpolate": Of(lambda x: F.interpolate(x.mT, scale_factor=1.5)),
    "unfold": Of(lambda x: (x.unfold(1, 3, 2), F.unfold(x[:, None], (3, 2)))),
    "cat": Of(lambda x: torch.cat([x, x, x[:, 1:]], 1)),
    "reshape": Of(lambda x: (x.flatten(0, 1), x.reshape(-1, 2), x.reshape(x.shape[0], -1))),
    "repeat": Of(lambda x: (x.repeat(2, 3, 1), x.repeat_interleave(2, dim=1), torch.tile(x, (x.shape[0], 1, 1)))),
    "pad": Of(lambda x: F.pad(x, (0, 0, 1, 2))),
    "arange": Of(lambda x: (torch.arange(x.shape[1]), torch.arange(0, x.shape[1], 2), x)),
    "einsum": Of(lambda x: torch.einsum("bti,cuj->tucb", x, x)),
    "topk": Of(lambda x: x.topk(x.shape[1] // 2, dim=1)[0]),
    "weights": Of(lambda layer, x: layer(x, x, x), nn.MultiheadAttention(4, 2, batch_first=True)),
    "inputs": Of(lambda x: (x, x + 1)),
    "sizes": Of(lambda x: (x.new_zeros(sum(x.shape[:2]), 2), x.new_ones(x.shape[0] * 3 // 2, x.shape[1] // 2))),
    "slices": Of(lambda x: (x[:, 1:], x[:, ::2], x[:, :3], x[:, :50], x[:, : x.shape[1] // 2])),
    "diagonal": Of(lambda x: (torch.diagonal(x, 0, 1, 2), torch.diag_embed(x[:, :, 0]), x[:, :, None] + x[:, None])),
    "condition": Of(lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_declared_sizes(name: str) -> None:
    """Sums, products, quotients and least values of two dynamic axes are declared as what they are, or not at all."""
    check(OPERATORS[name])
