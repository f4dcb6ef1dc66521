"""`Case`: one setting of a strategy."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Created = TypeVar("Created")


class Case:
    """One setting that a strategy is tested, measured and documented at: the input widths and the options.

    >>> Case(dims=(4, 6, 2), n=5, r=2)
    Case(dims=(4, 6, 2), n=5, r=2)
    """

    def __init__(self, dims: Sequence[int], **options: Any) -> None:
        self.dims = tuple(dims)
        self.options = options

    def __repr__(self) -> str:
        return f"Case(dims={self.dims}" + "".join(f", {key}={value!r}" for key, value in self.options.items()) + ")"

    def create(self, strategy: Callable[..., Created], **options: Any) -> Created:
        """Return the strategy's fusion at this case; `options` override the case's own."""
        return strategy(dims=self.dims, **{**self.options, **options})
