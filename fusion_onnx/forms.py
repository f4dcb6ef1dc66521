"""`form`: marks the methods of a strategy that write its maths in ONNX, each another exact form of the same result."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])
_MARK = "_fusion_onnx_form"


@dataclass(frozen=True)
class Form:
    """One exact way to write a fusion in ONNX.

    name: what `form=` and the exported file call it. method: the name of the method that writes it. bitwise: whether it
    gives eager execution's bits, where the strategy does; else its results are held to the bound. infinities: whether
    an infinite entry has the same consequences (Inf or NaN) as in eager execution's order of operations. bound: the
    name of the method that bounds its error, where `error_bound` does not.

    The exporter chooses freely among the forms for which both hold, and takes the others where it is asked to.
    """

    name: str
    method: str
    bitwise: bool = True
    infinities: bool = True
    bound: str = "error_bound"

    @property
    def faithful(self) -> bool:
        """Whether nobody can tell its results from those of `decompose`."""
        return self.bitwise and self.infinities


def form(
    name: str, *, bitwise: bool = True, infinities: bool = True, bound: str = "error_bound"
) -> Callable[[Method], Method]:
    """Mark a method `(op, xs, w, *buffers)` as a form; it returns NotImplemented where it has nothing to offer.

    >>> @form("variadic")
    ... def decompose_variadic(self, op, xs, w, *buffers):
    ...     return op.Sum(*xs)
    """

    def mark(method: Method) -> Method:
        setattr(method, _MARK, Form(name, method.__name__, bitwise, infinities, bound))
        return method

    return mark


def forms_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the form of each fusion, by its node's name, as a file's metadata tells it; nothing where it does not."""
    return _told(metadata, "form")


def algebra_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what `export(optimize="algebra")` did to which fusions, by their nodes' names."""
    return _told(metadata, "algebra")


def facts_in(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return all that a file's metadata tells of each fusion's form, by its node's name: see `Chosen.facts`."""
    try:
        facts = json.loads(metadata.get("fusion_onnx.forms", "{}"))
    except json.JSONDecodeError:
        return {}
    told = facts.items() if isinstance(facts, dict) else ()
    return {node: fact for node, fact in told if isinstance(fact, dict)}


def _told(metadata: Mapping[str, str], key: str) -> dict[str, str]:
    return {node: str(fact[key]) for node, fact in facts_in(metadata).items() if key in fact}


def forms_of(cls: type) -> dict[str, Form]:
    """Return the forms of a class by name: that of `decompose` first, the others in the order they are written in."""
    found: dict[str, Form] = {}
    for base in cls.__mro__:
        for name in vars(base):
            marked: Form | None = getattr(getattr(cls, name), _MARK, None)
            if marked is not None:
                found.setdefault(marked.name, marked)
    first = getattr(cls.decompose, _MARK, None) or Form("plain", "decompose")  # type: ignore[attr-defined]
    return {first.name: first, **{name: one for name, one in found.items() if name != first.name}}
