"""`form`: marks the methods of a strategy that write its maths in ONNX, each another exact form of the same result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])
_MARK = "_fusion_onnx_form"


@dataclass(frozen=True)
class Form:
    """One exact way to write a fusion in ONNX.

    name: what `form=` and the exported file call it. method: the name of the method that writes it. bitwise: whether it
    gives eager execution's bits, where the strategy does; else its results are held to the bound. propagates_inf:
    whether an infinite entry has the same consequences (Inf or NaN) as in eager execution's order of operations. bound:
    the name of the method that bounds its error, where `error_bound` does not.

    The exporter chooses freely among the forms for which both hold, and takes the others where it is asked to.
    """

    name: str
    method: str
    bitwise: bool = True
    propagates_inf: bool = True
    bound: str = "error_bound"

    @property
    def drop_in(self) -> bool:
        """Whether nobody can tell its results from those of `decompose`."""
        return self.bitwise and self.propagates_inf


def form(
    name: str, *, bitwise: bool = True, propagates_inf: bool = True, bound: str = "error_bound"
) -> Callable[[Method], Method]:
    """Mark a method `(op, xs, w, *buffers)` as a form; it returns NotImplemented where it has nothing to offer.

    >>> @form("variadic")
    ... def decompose_variadic(self, op, xs, w, *buffers):
    ...     return op.Sum(*xs)
    """

    def mark(method: Method) -> Method:
        setattr(method, _MARK, Form(name, method.__name__, bitwise, propagates_inf, bound))
        return method

    return mark


def forms_of(cls: type) -> dict[str, Form]:
    """Return the forms of a class by name: that of `decompose` first, the others in the order they are written in."""
    marks: dict[str, Form] = {}
    for base in cls.__mro__:
        for name in vars(base):
            mark = mark_of(getattr(cls, name))
            if mark is not None:
                marks.setdefault(mark.name, mark)
    first = mark_of(cls.decompose) or Form("plain", "decompose")  # type: ignore[attr-defined]
    return {first.name: first, **{name: mark for name, mark in marks.items() if name != first.name}}


def mark_of(method: Any) -> Form | None:
    """Return what `@form` says of a method; None where it is not marked."""
    mark: Form | None = getattr(method, _MARK, None)
    return mark
