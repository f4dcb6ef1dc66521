"""Hostile inputs: the values, sizes and layouts at which an exported model is most likely to part from eager.

Each class of values is a function from the shapes of the floating inputs to tensors; the decorated name is what
reports call it. A class marked `each` is tried at one input after the other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Draw = Callable[["Source"], list[Tensor]]


@dataclass(frozen=True)
class Source:
    """What a class of values is drawn for: tensors like these, `at` the one to spoil, `largest` the largest value."""

    like: Sequence[Tensor]
    generator: torch.Generator
    at: int = 0
    largest: float = 0.0

    @property
    def info(self) -> torch.finfo:
        """The limits of the inputs' dtype, the narrowest where they differ."""
        return min((torch.finfo(t.dtype) for t in self.like), key=lambda info: info.max)

    def normal(self, scale: float = 1.0) -> list[Tensor]:
        """Return normal values, drawn in float64 and rounded once."""
        return [self.cast(scale * self._randn(t), t) for t in self.like]

    def uniform(self) -> list[Tensor]:
        """Return values in [0, 1), in float64."""
        return [torch.rand(t.shape, generator=self.generator, dtype=torch.float64) for t in self.like]

    def signs(self) -> list[Tensor]:
        """Return 1 and -1, in float64."""
        return [1 - 2 * (u < 0.5).double() for u in self.uniform()]

    def with_value(self, value: float) -> list[Tensor]:
        """Return normal values, the first of one input and about one in two of its rows spoilt by a `value`."""
        xs = self.normal()
        places = self.uniform()[self.at] < 0.5 / max(self.like[self.at].shape[-1], 2)
        if places.numel():
            places.view(-1)[0] = True
        xs[self.at][places] = value
        return xs

    @staticmethod
    def cast(values: Tensor, like: Tensor) -> Tensor:
        """Return values in the dtype and on the device of an input."""
        return values.to(like.dtype).to(like.device)

    def _randn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64)


_VALUES: dict[str, tuple[Draw, int, bool]] = {}


def _class(name: str, *, inputs: int = 1, each: bool = False) -> Callable[[Draw], Draw]:
    def keep(draw: Draw) -> Draw:
        _VALUES[name] = (draw, inputs, each)
        return draw

    return keep


@_class("normal")
def _normal(source: Source) -> list[Tensor]:
    return source.normal()


@_class("small, 1e-4")
def _small(source: Source) -> list[Tensor]:
    return source.normal(1e-4)


@_class("large, 1e4")
def _large(source: Source) -> list[Tensor]:
    return source.normal(1e4 if source.info.max > 1e6 else 1e3)


@_class("huge")
def _huge(source: Source) -> list[Tensor]:
    pairs = zip(source.uniform(), source.signs(), source.like, strict=True)
    return [source.cast(u * sign * (source.largest / 1024), t) for u, sign, t in pairs]


@_class("tiny")
def _tiny(source: Source) -> list[Tensor]:
    pairs = zip(source.uniform(), source.signs(), source.like, strict=True)
    return [source.cast((1 + 7 * u) * sign * source.info.smallest_normal, t) for u, sign, t in pairs]


@_class("subnormal")
def _subnormal(source: Source) -> list[Tensor]:
    pairs = zip(source.uniform(), source.signs(), source.like, strict=True)
    return [source.cast(u * sign * source.info.smallest_normal, t) for u, sign, t in pairs]


@_class("mixed magnitudes")
def _mixed(source: Source) -> list[Tensor]:
    exponent = 0.8 * torch.log2(torch.tensor(source.largest, dtype=torch.float64))
    pairs = zip(source.uniform(), source.signs(), source.like, strict=True)
    return [source.cast(sign * torch.exp2((2 * u - 1) * exponent), t) for u, sign, t in pairs]


@_class("all equal")
def _equal(source: Source) -> list[Tensor]:
    value = torch.rand((), generator=source.generator, dtype=torch.float64) + 0.1
    return [source.cast(value.expand(t.shape).clone(), t) for t in source.like]


@_class("ties")
def _ties(source: Source) -> list[Tensor]:
    return [source.cast((3 * u).floor() - 1, t) for u, t in zip(source.uniform(), source.like, strict=True)]


@_class("zeros of both signs")
def _zeros(source: Source) -> list[Tensor]:
    return [source.cast(0.0 * sign, t) for sign, t in zip(source.signs(), source.like, strict=True)]


@_class("negative")
def _negative(source: Source) -> list[Tensor]:
    return [-x.abs() for x in source.normal()]


@_class("cancelling", inputs=2)
def _cancelling(source: Source) -> list[Tensor]:
    xs = source.normal()
    for i in range(1, len(xs), 2):
        if xs[i].shape == xs[i - 1].shape:
            xs[i] = source.cast(-xs[i - 1].double() * (1 + 4 * source.info.eps), xs[i])
    return xs


@_class("NaN", each=True)
def _nan(source: Source) -> list[Tensor]:
    return source.with_value(float("nan"))


@_class("+Inf", each=True)
def _inf(source: Source) -> list[Tensor]:
    return source.with_value(float("inf"))


@_class("-Inf", each=True)
def _minus_inf(source: Source) -> list[Tensor]:
    return source.with_value(float("-inf"))


@_class("Inf - Inf", inputs=2)
def _inf_minus_inf(source: Source) -> list[Tensor]:
    xs = source.with_value(float("inf"))
    for x in xs[1:]:
        x.reshape(-1)[: max(x.numel() // 2, 1)] = float("-inf")
    return xs


@_class("overflow")
def _overflow(source: Source) -> list[Tensor]:
    return [source.cast(0.9 * sign * source.largest, t) for sign, t in zip(source.signs(), source.like, strict=True)]


def names() -> list[str]:
    """Return the names of the classes of values."""
    return list(_VALUES)


def values(
    like: Sequence[Tensor], labels: Sequence[str], *, largest: float | None = None, seed: int = 0
) -> Iterator[tuple[str, list[Tensor]]]:
    """Draw every class of values for inputs of these shapes, dtypes and devices: (name, tensors), one after the other.

    labels: what the inputs are called, for the classes that are tried in each: "NaN in x2". largest: the largest value
    that is drawn, by default the dtype's.
    """
    largest = min((torch.finfo(t.dtype).max for t in like), default=0.0) if largest is None else largest
    for name, (draw, inputs, each) in _VALUES.items():
        if len(like) < inputs:
            continue
        for at in range(len(like)) if each else range(1):
            generator = torch.Generator().manual_seed(seed + at)
            values = draw(Source(like, generator, at, largest))
            yield (f"{name} in {labels[at]}" if each else name), values


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Lay a tensor out in memory in every way that strides allow; all but the broadcast one keep its values."""
    if tensor.ndim == 0 or tensor.numel() == 0:
        return
    yield "not contiguous", torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]
    yield "sliced", tensor.repeat_interleave(2, 0)[::2]
    yield "with an offset", torch.cat([tensor[:1], tensor])[1:]
    yield "broadcast, stride 0", tensor[:1].expand(tensor.shape)
    order = list(reversed(range(tensor.ndim)))
    yield "Fortran order", tensor.permute(order).contiguous().permute(order)
