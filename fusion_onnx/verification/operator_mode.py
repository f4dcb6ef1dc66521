"""`OperatorMode`: the base of what watches a module's operators while it runs."""

import contextlib
import sys
from typing import Any, Self

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode):
    """Sees every operator that runs while it is entered, those in the branch that a `torch.cond` takes too.

    A subclass gives `operator(func, args, kwargs)`, which runs `func` and returns its result. What is compiled is run
    uncompiled meanwhile: its operators could not be seen, and some of it does not compile under a mode.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._uncompiled = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and to import it takes a second
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._uncompiled.close()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled meanwhile; to say so to torch's compiler would import it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, HigherOrderOperator):
            return self.operator(func, args, kwargs or {})
        if func is not torch.ops.higher_order.cond:
            raise NotImplementedError(f"the operators in {func} are not seen")
        condition, true, false, operands = args
        with self:
            return (true if condition else false)(*operands)

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator and return its result."""
        return func(*args, **kwargs)
