"""Declared shapes: what one run of a model can show to be false, and what export declares."""

from __future__ import annotations

import pytest

from fusion_onnx.runtime import TensorInfo
from fusion_onnx.verification.declared import false_shapes


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
