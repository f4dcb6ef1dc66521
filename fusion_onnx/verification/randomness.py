"""Whether a module gives the same for the same: what it draws at random in eval mode, and whatever else changes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.operator_mode import OperatorMode


def why_not_repeatable(run: EvalMode, args: tuple[Any, ...], once: Sequence[Tensor], drew: bool) -> str:
    """Return why nothing can be equal to a module: it gives other results for the same inputs; else "".

    once: its outputs; drew: whether that run drew random numbers.
    """
    operators = drawing(run, args) if drew else ""
    if not operators and repeats(run, args, once):
        return ""
    why = f": it draws random numbers in eval mode ({operators})" if operators else ""
    return f"the module gives different results for the same inputs{why}; nothing can be equal to it"


def repeats(run: EvalMode, args: tuple[Any, ...], once: Sequence[Tensor]) -> bool:
    """Return whether the module gives these outputs again."""
    again = run.outputs(args)
    return len(once) == len(again) and all(
        x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(once, again, strict=True)
    )


def drawing(run: EvalMode, args: tuple[Any, ...]) -> str:
    """Return the operators that draw random numbers of which the outputs are made; empty where there are none.

    What is made of what is followed, not the values: two runs may draw the same by chance, and dropout in front of a
    maximum may not show.
    """
    draws = _Draws()
    with draws:
        outputs = run.outputs(args)
    return ", ".join(dict.fromkeys(draws.operators)) if any(draws.reach(y) for y in outputs) else ""


class _Draws(OperatorMode):
    """Follows what is made of random numbers, by the memory in which it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self._memory: dict[int, Any] = {}  # held, so that no other tensor gets the same place

    def reach(self, tensor: Tensor) -> bool:
        """Return whether a tensor is made of random numbers."""
        return tensor.untyped_storage().data_ptr() in self._memory

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        state = torch.get_rng_state()  # its tag does not tell: exponential_ and its like have none
        reached = any(isinstance(leaf, Tensor) and self.reach(leaf) for leaf in pytree.tree_leaves((args, kwargs)))
        result = func(*args, **kwargs)
        if not torch.equal(state, torch.get_rng_state()):
            self.operators.append(str(func.overloadpacket).removeprefix("aten."))
            reached = True
        if reached:
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor):
                    storage = leaf.untyped_storage()
                    self._memory[storage.data_ptr()] = storage
        return result
