"""Every strategy under the name that the tinyBIG library has for it, for its users to import.

The names come from the classes. A name here has tinyBIG's order of parameters, its own name as the default of `name`,
and `dims` as a list. Where tinyBIG computes something else than the strategy's definition (its three Kronecker
concatenations reshape an outer product), the name here gives tinyBIG's numbers, so that weights trained with it carry
over:

>>> from fusion_onnx.tinybig import hm_parameterized_concatenation_fusion
>>> hm_parameterized_concatenation_fusion(2, dims=[4, 8], n=6).product
'outer'

`fusion` and `function` are the base classes, and `from_config` reads what tinyBIG's `to_config` and YAML files hold.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_onnx.errors import FusionError
from fusion_onnx.fusions import _folder

if TYPE_CHECKING:
    from fusion_onnx.contract import Fusion

_PREFIX = "torch.nn.modules."


def from_config(config: Mapping[str, Any]) -> "Fusion":
    """Build a fusion from a config as tinyBIG's own `to_config` gives it, or its YAML files hold it.

    The class is found by the last part of `function_class`, whatever package it names. What tinyBIG's configs hold of
    torch's insides is left out.

    Raises:
        FusionError: the class is unknown, a function has lost its name, or weights would be lost.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("function_class"), str):
        raise FusionError(f"a config of tinyBIG is a mapping with a function_class; got {config!r}.")
    name = config["function_class"].rpartition(".")[2]
    if name not in _classes():
        raise FusionError(f"tinyBIG has no fusion {name!r}; it has {', '.join(_classes())}.")
    cls: Any = _classes()[name]
    given = config.get("function_parameters") or {}
    options = {key: given[key] for key in given if key in cls.options() and given[key] is not None}
    for key in ("preprocess_function_configs", "postprocess_function_configs"):
        if key in options:
            options[key] = _functions(options[key])
    for key in ("preprocess_functions", "postprocess_functions"):  # tinyBIG writes them as configs, too
        if f"{key[:-1]}_configs" in options:
            options.pop(key, None)
    if "metric" in options and callable(options["metric"]):
        options["metric"] = options["metric"].__name__.removeprefix("batch_")
    fusion: Fusion = cls(**options)
    return fusion


def _functions(configs: Any) -> Any:
    if isinstance(configs, (list, tuple)):
        return [_functions(one) for one in configs]
    if not isinstance(configs, Mapping) or not isinstance(configs.get("function_class"), str):
        raise FusionError(f"a function's config in tinyBIG is a mapping with a function_class; got {configs!r}.")
    name = configs["function_class"]
    if name.startswith("builtins."):
        raise FusionError(f"tinyBIG wrote a function as {name!r}, and so lost its name; give the function itself.")
    if name.startswith(_PREFIX):
        name = f"torch.nn.{name.rpartition('.')[2]}"
    parameters = configs.get("function_parameters") or {}
    for key, value in (parameters.get("_parameters") or {}).items():
        if value is not None and not bool((value == (1 if key == "weight" else 0)).all()):
            raise FusionError(f"the config of {name} holds a trained {key}, which it cannot hand on; give the module.")
    kept = {key: value for key, value in parameters.items() if not key.startswith("_") and key != "training"}
    return {"function_class": name, "function_parameters": kept}


@functools.cache
def _classes() -> dict[str, type]:
    return {
        name: _spelled(cls, name, order)
        for cls in map(_folder.load, _folder.names())
        for name, order in cls.tinybig.items()
    }


def _spelled(cls: Any, name: str, order: tuple[str, ...]) -> type:
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        if len(args) > len(order):
            raise TypeError(f"{name} takes {len(order)} arguments by position, {', '.join(order)}; got {len(args)}.")
        by_position = dict(zip(order, args, strict=False))
        twice = by_position.keys() & options.keys()
        if twice:
            raise TypeError(f"{name} got multiple values for {', '.join(sorted(twice))}.")
        cls.__init__(self, **{"name": name, **cls.tinybig_defaults, **by_position, **options})

    def read(self: Any) -> list[int] | None:
        return None if self.__dict__["dims"] is None else list(self.__dict__["dims"])

    def write(self: Any, dims: Any) -> None:
        self.__dict__["dims"] = dims

    body = {"__init__": __init__, "__doc__": cls.__doc__, "__module__": __name__, "_alias_of": cls}
    alias: type = type(cls)(name, (cls,), {**body, "dims": property(read, write, doc="The input widths, a list.")})
    return alias


def __getattr__(name: str) -> Any:
    if name == "fusion":
        from fusion_onnx.contract import Fusion

        return Fusion
    if name == "function":
        from fusion_onnx.base import function

        return function
    if name.startswith("__") or name not in _classes():
        raise AttributeError(f"module {__name__!r} has no {name!r}; it has {', '.join(__dir__())}")
    return _classes()[name]


def __dir__() -> list[str]:
    return sorted([*_classes(), "from_config", "function", "fusion"])
