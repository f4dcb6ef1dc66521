"""The registry of strategies: the folder `fusions`, what other packages offer, and what the caller registered.

`names()` reads file names and imports nothing; `get(name)` imports the one file.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from fusion_onnx.errors import FusionError, suggestion
from fusion_onnx.fusions import _folder

if TYPE_CHECKING:
    from fusion_onnx.contract import Fusion

ENTRY_POINT_GROUP = "fusion_onnx.fusions"
_registered: dict[str, "type[Fusion]"] = {}


def names() -> list[str]:
    """Return the names of all strategies, sorted: ours, those of installed packages, and the registered ones."""
    return sorted({*_folder.names(), *_entry_points(), *_registered})


def get(name: str) -> "type[Fusion]":
    """Return the class of the strategy of that name; raises FusionError, with the known names, where there is none."""
    if name in _registered:
        return _registered[name]
    if name in _folder.names():
        return _folder.load(name)
    points = _entry_points()
    if name in points:
        return _checked(name, points[name].load())
    parts = [n for n in names() if n in str(name)]
    hint = suggestion(str(name), names()) or (f" Did you mean {parts[-1]!r}?" if parts else "")
    raise FusionError(
        f"unknown strategy {name!r}.{hint} Known are {', '.join(names())}; "
        "one of your own is made known by fusion_onnx.register(cls)."
    )


def create(name: str, /, dims: Any = None, **options: Any) -> "Fusion":
    """Return a fusion: `create("low_rank_concatenation", dims=[4, 6], n=5, r=2)`."""
    return get(name)(dims=dims, **options)


def register(cls: "type[Fusion]") -> "type[Fusion]":
    """Make a strategy of your own known by its name to `get`, `create`, `from_config` and the command line.

    Usable as a decorator. The name is the snake case of the class name without its ending `Fusion`. Registering a
    class again under its own name replaces it; the name of a strategy that comes with the package is refused.
    """
    name = _checked(getattr(cls, "__name__", repr(cls)), cls).strategy()
    if name in _folder.names() and _folder.load(name) is not cls:
        raise FusionError(f"register({cls.__name__}): {name!r} is a strategy of this package; rename the class.")
    _registered[name] = cls
    return cls


def _entry_points() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _checked(name: str, cls: Any) -> "type[Fusion]":
    from fusion_onnx.contract import Fusion

    if not (isinstance(cls, type) and issubclass(cls, Fusion)):
        raise FusionError(f"strategy {name!r}: {cls!r} is not a subclass of fusion_onnx.Fusion.")
    return cls
