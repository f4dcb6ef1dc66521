"""Fusions as plain data: `to_config` and its inverse, which trusts nothing it is given.

A config names a strategy of the registry. Nothing is imported or called because of text in it: unknown strategies,
options and functions are refused, and so are configs that are too large or too deep.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_onnx import registry
from fusion_onnx.errors import FusionError

if TYPE_CHECKING:
    from fusion_onnx.contract import Fusion

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
_KEYS = ("function_class", "function_parameters")


def to_config(fusion: "Fusion") -> dict[str, Any]:
    """Return the fusion as plain data, as its own `to_config()` does."""
    return fusion.to_config()


def from_config(config: "Mapping[str, Any] | str") -> "Fusion":
    """Build a fusion from its config, a mapping or its JSON text.

    Raises:
        FusionError: it is not of the form `{"function_class": name, "function_parameters": {...}}`, names something
            unknown, repeats a key, or is larger than 1 MiB or nested deeper than 16.
    """
    if isinstance(config, str):
        config = parse(config)
    if not isinstance(config, Mapping):
        raise FusionError(f"a config is a mapping or its JSON text; got {type(config).__name__}.")
    if str(config.get("function_class")).startswith("tinybig."):
        raise FusionError(
            f"unknown strategy {config['function_class']!r}; configs of tinyBIG's are read by "
            "fusion_onnx.tinybig.from_config."
        )
    config = dict(_plain(config, MAX_DEPTH))
    if len(json.dumps(config)) > MAX_BYTES:
        raise FusionError(f"a config holds at most {MAX_BYTES} bytes.")
    unknown = [key for key in config if key not in _KEYS]
    name, parameters = config.get("function_class"), config.get("function_parameters", {})
    if unknown or not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise FusionError(f"a config has the keys {' and '.join(_KEYS)}: a name and a mapping; got {list(config)}.")
    cls = registry.get(name)
    try:
        return cls(**parameters)
    except FusionError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise FusionError(f"config: {name} cannot be made of {dict(parameters)!r:.200}: {error}") from error


def parse(text: str) -> Any:
    """Return what JSON text holds; raises FusionError where it is none, is too large, or repeats a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in pairs:
            if key in mapping:
                raise FusionError(f"config: the key {key!r} stands twice.")
            mapping[key] = value
        return mapping

    if len(text) > MAX_BYTES:
        raise FusionError(f"a config holds at most {MAX_BYTES} bytes; got {len(text)}.")
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FusionError(f"config: not JSON ({error}).") from None


def _plain(value: Any, depth: int) -> Any:
    """Return the config in dicts and lists; raises FusionError for what is no plain data."""
    if depth == 0:
        raise FusionError(f"a config is nested at most {MAX_DEPTH} deep.")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FusionError(f"config: keys are text; got {key!r}.")
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise FusionError(f"config: {value!r} is not plain data.")
    return value
