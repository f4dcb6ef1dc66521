"""What the checks of the contract are made of: `check` registers one, `Trial` is a fusion with inputs to try it on."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract import Case, Fusion
from fusion_onnx.errors import FusionError

Check = Callable[[type[Fusion], Case], None]
"""A check: it takes the class and a case, and raises AssertionError, naming the rule, where the rule is broken."""

BATCH = (3,)
CHECKS: list[Check] = []
"""Every check, in the order in which they are defined."""


def check(body: Check) -> Check:
    """Make a function a check: whatever it raises becomes an AssertionError that names class, case and rule."""

    @functools.wraps(body)
    def checked(cls: type[Fusion], case: Case) -> None:
        try:
            body(cls, case)
        except Exception as error:
            rule = (body.__doc__ or body.__name__).splitlines()[0].rstrip(".")
            detail = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{cls.__name__} at {case}: {body.__name__} ({rule}): {detail}") from error

    CHECKS.append(checked)
    return checked


class Trial:
    """A fusion at a case, with inputs and parameters to try it on.

    All values differ, lie between 0.5 and 1.5 in size, and have either sign; the inputs are positive where the fusion
    is not finite on negative ones (a geometric mean).
    """

    def __init__(
        self,
        cls: type[Fusion],
        case: Case,
        lead: Sequence[int] = BATCH,
        dtype: torch.dtype = torch.float64,
        fusion: Fusion | None = None,
    ) -> None:
        self.fusion = case.create(cls) if fusion is None else fusion
        self.dtype = dtype
        length = self.fusion.calculate_l()
        self.w = _distinct((length,), 1).to(dtype) if length else None
        widths = case.dims
        flat = _distinct((math.prod(lead) * sum(widths),), 2).to(dtype)
        parts = torch.split(flat, [math.prod(lead) * width for width in widths])
        self.xs = [part.reshape(*lead, width) for part, width in zip(parts, widths, strict=True)]
        if not bool(self().isfinite().all()):
            self.xs = [x.abs() for x in self.xs]

    def __call__(self, xs: Sequence[Tensor] | None = None, fusion: Fusion | None = None) -> Tensor:
        """Return the output of the fusion, or of another one, for the inputs, or for others."""
        fusion = self.fusion if fusion is None else fusion
        return one_tensor(fusion(self.xs if xs is None else xs, self.w))


def _distinct(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    sizes = torch.linspace(0.5, 1.5, max(count, 1), dtype=torch.float64)[:count]
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (sizes * signs)[torch.randperm(count, generator=generator)].reshape(shape)


def one_tensor(y: Any) -> Tensor:
    """Return a fusion's output; raise AssertionError where it is no tensor."""
    assert isinstance(y, Tensor), f"the output is one tensor; got {type(y).__name__}"
    return y


def demand(holds: Any, otherwise: str) -> None:
    """Raise AssertionError unless it holds; an `assert` would be gone under `python -O`."""
    if not holds:
        raise AssertionError(otherwise)


def same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Demand the same dtype, shape and numbers."""
    _alike(actual, expected, what)
    demand(torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN stands elsewhere")
    actual, expected = actual.nan_to_num(0.0), expected.nan_to_num(0.0)
    demand(torch.equal(actual, expected), f"{what}: differs by up to {(actual - expected).abs().max().item():g}")


def near(actual: Tensor, expected: Tensor, what: str) -> None:
    """Demand the same dtype and shape, and numbers that differ by no more than another order of float64 sums."""
    _alike(actual, expected, what)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{what}: {text}")


def _alike(actual: Tensor, expected: Tensor, what: str) -> None:
    """Demand the same dtype and shape."""
    demand(actual.dtype == expected.dtype, f"{what}: dtype is {actual.dtype}, where {expected.dtype} was expected")
    shapes = shape_of(actual), shape_of(expected)
    demand(shapes[0] == shapes[1], f"{what}: shape is {shapes[0]}, where {shapes[1]} was expected")


def shape_of(x: Tensor) -> list[int]:
    """Return the shape as a list, which prints as one."""
    return list(x.shape)


def refuses(what: str, call: Callable[[], Any], *names: str) -> None:
    """Demand a FusionError whose message has each of these in it."""
    try:
        call()
    except FusionError as error:
        for name in names:
            demand(name in str(error), f"{what} is refused, but the message does not name {name!r}: {error}")
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__} ({error}), where FusionError is due") from error
    else:
        raise AssertionError(f"{what} is accepted, where FusionError is due")


def base_forward(cls: type[Fusion]) -> bool:
    """Return whether the class has the forward of the base class, and so what that promises."""
    return cls.forward is Fusion.forward
