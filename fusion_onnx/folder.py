"""A folder as a registry: a file is an entry under its own name; files that begin with _ are what entries share."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

Base = TypeVar("Base")


def names(package: str) -> list[str]:
    """Return the names of a package's files, sorted, importing none of them."""
    folders = (sys.modules.get(package) or importlib.import_module(package)).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def classes(package: str, name: str) -> Iterator[type]:
    """Import one file of a package, and yield the classes that it defines."""
    module = importlib.import_module(f"{package}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value


def entry(package: str, name: str, base: Callable[..., Base]) -> type[Base]:
    """Import one file of a package, and return its class derived from `base`; raise ImportError where there is none."""
    assert isinstance(base, type)  # type[...] does not take an abstract class, which this is for
    for cls in classes(package, name):
        if issubclass(cls, base):
            return cls  # type: ignore[return-value]
    raise ImportError(f"{package.rpartition('.')[2]}/{name}.py has no class derived from {base.__name__}.")
