"""One torch op for each strategy, `torch.ops.fusion_onnx.<strategy>(xs, params, config)`.

Autograd and torch.compile see through it; torch.export keeps it as one node, with the fusion's options as its config.
The op finds the maths by that config: each fusion leaves a stand-in here, with its options but none of its tensors.
"""

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fusion_onnx.contract import Fusion

DOMAIN = "fusion_onnx"
STRATEGY_OF_OP: "dict[Any, type[Fusion]]" = {}
"""The class behind each op; the exporter's translation table is made from it."""

_LIBRARY = torch.library.Library(DOMAIN, "FRAGMENT")
_STAND_INS: "dict[tuple[Any, str], Fusion]" = {}


def declare(cls: "type[Fusion]") -> Any:
    """Define the torch op of a strategy and return it.

    A class defined anew under the same name (a notebook cell run twice) gets an op of its own, so that fusions made
    before go on computing what they did.
    """
    base, taken = cls.strategy(), 1
    name = base
    while hasattr(getattr(torch.ops, DOMAIN), name):
        taken += 1
        name = f"{base}_{taken}"
    _LIBRARY.define(f"{name}(Tensor[] xs, Tensor[] params, str config) -> Tensor")
    packet = getattr(getattr(torch.ops, DOMAIN), name).default

    def implementation(xs: list[Tensor], params: list[Tensor], config: str) -> Tensor:
        fusion = stand_in(packet, config)
        count = len(fusion._buffer_names)
        buffers, w = params[:count], params[count] if len(params) > count else None
        return fusion._evaluate(xs, w, buffers)

    _LIBRARY.impl(name, implementation, "CompositeImplicitAutograd")
    STRATEGY_OF_OP[packet] = cls
    return packet


def known(op: Any, config: str) -> bool:
    """Return whether a stand-in is there."""
    return (op, config) in _STAND_INS


def publish(op: Any, config: str, fusion: "Fusion") -> None:
    """Keep the stand-in of a config."""
    _STAND_INS[op, config] = fusion


def stand_in(op: Any, config: str) -> "Fusion":
    """Return the fusion, without its tensors, that a call of a strategy's torch op stands for."""
    found = _STAND_INS.get((op, config))
    if found is None:  # a program exported in another process
        record = json.loads(config)
        found = STRATEGY_OF_OP[op](**record["function_parameters"])
        found._buffer_names = tuple(record.get("buffers", ()))
    return found
