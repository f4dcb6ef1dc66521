"""A constructor's options: their names, their values as plain data, and what is refused among them."""

import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from fusion_onnx.errors import FusionError, suggestion

CONFIGS = ("preprocess_function_configs", "postprocess_function_configs")


class OptionError(FusionError, TypeError):
    """An argument that the constructor, or a method, does not know."""


def parameters_of(cls: type, root: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class's constructor, its own before those of its bases down to `root`."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if issubclass(base, root) and "__init__" in base.__dict__:
            for parameter in list(inspect.signature(base.__init__).parameters.values())[1:]:
                if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    parameters.setdefault(parameter.name, parameter)
    return parameters


def check_known(owner: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise OptionError for a keyword that a constructor does not have."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise OptionError(
                f"{owner} has no option {key!r}.{suggestion(key, known)} Its options are {', '.join(known)}."
            )


def values_of(instance: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of options, which an instance keeps in attributes of the same names, as plain data."""
    values = {}
    for key in names:
        if key in CONFIGS:
            continue
        if not hasattr(instance, key):
            raise FusionError(
                f"{type(instance).__name__}: option {key!r} is not kept. Assign self.{key} in the constructor, "
                "so that to_config can write it."
            )
        values[key] = plain(getattr(instance, key))
    return values


def shown_values(values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return the options that are not at their defaults, for `print(model)`."""
    changed = {k: v for k, v in values.items() if k in parameters and v != parameters[k].default and k != "name"}
    return ", ".join(f"{key}={_short(value)}" for key, value in changed.items() if value not in ((), None))


def checked_dims(dims: Any) -> tuple[int, ...] | None:
    """Return the input widths as a tuple of ints; raise FusionError for what are none."""
    if dims is None:
        return None
    if not isinstance(dims, (list, tuple)) or not dims:
        raise FusionError(f"dims is a list or tuple of at least one width; got {dims!r}.")
    widths = []
    for d in dims:
        width = whole(d)
        if width is None or width < 1:
            raise FusionError(f"dims are positive whole numbers; got {d!r} in {list(dims)!r}.")
        widths.append(width)
    return tuple(widths)


def whole(value: Any) -> int | None:
    """Return a whole number of any kind, NumPy's too, as an int; None for what is none, and for a bool."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def plain(value: Any) -> Any:
    """Return an option's value as plain data: tensors and tuples become lists."""
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    return list(value) if isinstance(value, tuple) else value


def is_plain_state(name: str, value: Any) -> bool:
    """Whether an attribute is such that the maths may depend on it: public and plain, and not the contract's own."""
    free = name.startswith("_") or name in ("name", "device", "training")
    return not free and isinstance(value, (bool, int, float, str, tuple, list))


def accept_surplus(cls: type, name: str) -> None:
    """Give a method that a class writes without `*args, **kwargs` the specification's: see `_accepting`."""
    method = inspect.getattr_static(cls, name)
    if isinstance(method, types.FunctionType):
        kinds = {p.kind for p in inspect.signature(method, follow_wrapped=False).parameters.values()}
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            setattr(cls, name, _accepting(method))


def _accepting(method: Callable[..., int]) -> Callable[..., int]:
    """Return a method that takes more by position, without effect, and no keyword that the given one does not know."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    count = len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
    known = tuple(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @functools.wraps(method)
    def accepting(self: Any, *args: Any, **kwargs: Any) -> int:
        if kwargs and not open_ended and not kwargs.keys() <= set(known):
            refuse_keyword(self, method.__name__, kwargs, known)
        return method(self, *args[:count], **kwargs)

    return accepting


def refuse_keyword(instance: Any, method: str, keywords: Iterable[str], known: Sequence[str]) -> NoReturn:
    """Raise the error of a keyword that a method does not have."""
    key = next(key for key in keywords if key not in known)
    takes = f"its keywords are {', '.join(known)}" if known else "it has no keywords"
    raise OptionError(f"{type(instance).__name__}.{method} was given {key!r}, which it does not know; {takes}.")


def _short(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
