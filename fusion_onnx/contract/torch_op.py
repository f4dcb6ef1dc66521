"""One torch op for each strategy, `torch.ops.fusion_onnx.<strategy>(xs, params, config)`: its whole life.

Autograd and torch.compile see through it; torch.export keeps it as one node, with the fusion's options as its config.
The op finds the maths by that config: each fusion registers a prototype, with its options but none of its tensors.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fusion_onnx.contract.options import is_plain_state, plain
from fusion_onnx.errors import FusionError
from fusion_onnx.file_format import DOMAIN


@dataclass(frozen=True)
class Signature:
    """How a fusion's torch op is called: with the inputs, the buffers and `w`, and the config.

    op: the strategy's torch op; None for a class that has none. config: the options that decide the maths, as canonical
    JSON; None where there is no op, or an option is no plain data: such a fusion is traced. buffers: their names, in
    the order in which they were registered.
    """

    op: Any
    config: str | None
    buffers: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """The options in the config; nothing where there is none."""
        parameters: dict[str, Any] = {} if self.config is None else json.loads(self.config)["function_parameters"]
        return parameters


class Prototype(Protocol):
    """What computes a call of an op: a fusion without tensors."""

    @property
    def signature(self) -> Signature:
        """The fusion's signature."""

    def evaluate(self, xs: Sequence[Tensor], w: Tensor | None, buffers: Sequence[Tensor]) -> Tensor:
        """Compute the output."""


STRATEGIES: dict[Any, str] = {}
"""The name of the strategy behind each op; the exporter's translation table is made from it."""

_LIBRARY = torch.library.Library(DOMAIN, "FRAGMENT")
_PROTOTYPES: dict[tuple[Any, str], Any] = {}
_BUILDERS: dict[Any, Callable[..., Prototype]] = {}


def declare(strategy: str, build: Callable[..., Prototype]) -> Any:
    """Define the torch op of a strategy and return it.

    A class defined anew under the same name (a notebook cell run twice) gets an op of its own, so that fusions made
    before go on computing what they did.

    Args:
        strategy: its name.
        build: makes a fusion from a config's options, and the names of its buffers as `buffers`.
    """
    count, name = 1, strategy
    while hasattr(getattr(torch.ops, DOMAIN), name):
        count += 1
        name = f"{strategy}_{count}"
    _LIBRARY.define(f"{name}(Tensor[] xs, Tensor[] params, str config) -> Tensor")
    op = getattr(getattr(torch.ops, DOMAIN), name).default

    def implementation(xs: list[Tensor], params: list[Tensor], config: str) -> Tensor:
        fusion: Prototype = prototype(op, config)
        count = len(fusion.signature.buffers)
        return fusion.evaluate(xs, params[count] if len(params) > count else None, params[:count])

    _LIBRARY.impl(name, implementation, "CompositeImplicitAutograd")
    STRATEGIES[op], _BUILDERS[op] = strategy, build
    return op


def config_of(strategy: str, options: Mapping[str, Any], buffers: Sequence[str]) -> str | None:
    """Return the options that decide the maths, as canonical JSON; None where one is no plain data."""
    values = {key: value for key, value in options.items() if value is not None}
    config: dict[str, Any] = {"function_class": strategy, "function_parameters": values}
    if buffers:  # an optional buffer is no part of the options, and its presence decides the maths
        config["buffers"] = buffers
    try:
        return json.dumps(config, sort_keys=True)
    except TypeError:
        return None


def register_prototype(fusion: Prototype, copy: Callable[[], Prototype]) -> None:
    """Register a copy of a fusion under its config; where there is one already, hold the fusion to it.

    Raises FusionError where plain state that is no option differs: two fusions with equal options compute the same.
    """
    signature = fusion.signature
    if signature.config is None:
        return
    registered = _PROTOTYPES.get((signature.op, signature.config))
    if registered is None:
        _PROTOTYPES[signature.op, signature.config] = copy()
        return
    for key, value in vars(fusion).items():
        before = vars(registered).get(key, value)
        if is_plain_state(key, value) and plain(before) != plain(value):
            raise FusionError(
                f"{type(fusion).__name__} keeps {key}={value!r}, which its options do not decide (before, it was "
                f"{before!r}). Make {key} an option, or a buffer."
            )


def prototype(op: Any, config: str) -> Any:
    """Return the fusion, without its tensors, that computes a call of a strategy's op."""
    registered = _PROTOTYPES.get((op, config))
    if registered is None:  # a program exported in another process
        facts = json.loads(config)
        registered = _BUILDERS[op](facts["function_parameters"], buffers=tuple(facts.get("buffers", ())))
    return registered
