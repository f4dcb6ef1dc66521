"""What the fusions have in common that combine k tensors of one shape entry by entry: n = n_1, and l = 0."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, TypeVar

from fusion_onnx.contract import Case, Fusion, FusionError

T = TypeVar("T")

CASES = (
    Case(dims=(8, 8)),
    Case(dims=(5, 5, 5)),
    Case(dims=(3,)),
    Case(dims=(4,) * 7),
    Case(dims=(2,) * 16),
)


class EntrywiseFusion(Fusion):
    """n = n_1, where all widths are equal; l = 0. `dims` may be left out."""

    equal_dims = True
    entrywise = True
    parameter_free: ClassVar[bool] = True
    """Whether it has neither parameters nor weights, so that its name alone says what it computes."""
    rule_n = "n_1"
    cases: ClassVar[tuple[Case, ...]] = CASES

    def calculate_n(self, dims: Sequence[int] | None = None) -> int:
        """Return n_1; raises FusionError where the widths are not given or not equal."""
        dims = self.dims if dims is None else dims
        if not dims:
            raise FusionError(f"{self.name}: n follows from the input widths; give dims.")
        if any(d != dims[0] for d in dims):
            raise FusionError(f"{self.name}: all inputs have one width; got dims={list(dims)}.")
        return dims[0]

    def calculate_l(self) -> int:
        """Return 0: nothing is trained."""
        return 0


def chain(terms: Iterable[T], combine: Callable[[T, T], T]) -> T:
    """Combine left to right: eager and graph share this order, and with it every rounding.

    Terms that come from a generator are made one by one, so that no more than one of them is held at a time.
    """
    return functools.reduce(combine, terms)
