"""Every strategy under the name that the tinyBIG library has for it, for its users to import.

The names come from the classes. Where tinyBIG computes something else than the strategy's definition (its three
Kronecker concatenations reshape an outer product), the name here gives tinyBIG's numbers, so that weights trained with
it carry over:

>>> from fusion_onnx.tinybig import hm_parameterized_concatenation_fusion
>>> hm_parameterized_concatenation_fusion(dims=[4, 8], n=6, p=2).product
'outer'
"""

import functools
from typing import Any

from fusion_onnx.fusions import _folder


@functools.cache
def _classes() -> dict[str, type]:
    return {name: _spelled(cls, name) for cls in map(_folder.load, _folder.names()) for name in cls.tinybig}


def _spelled(cls: Any, name: str) -> type:
    if not cls.tinybig_defaults:
        return cls  # type: ignore[no-any-return]

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        cls.__init__(self, *args, **{**cls.tinybig_defaults, **options})

    body = {"__init__": __init__, "__doc__": cls.__doc__, "__module__": __name__, "_alias_of": cls}
    alias: type = type(cls)(name, (cls,), body)
    return alias


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name not in _classes():
        raise AttributeError(f"module {__name__!r} has no {name!r}; it has {', '.join(__dir__())}")
    return _classes()[name]


def __dir__() -> list[str]:
    return sorted(_classes())
