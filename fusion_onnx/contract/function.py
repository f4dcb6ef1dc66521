"""`function`: a named operation on tensors, the small base that `Fusion` shares with data transformations."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from fusion_onnx.contract import callables
from fusion_onnx.errors import FusionError


class function:
    """A named operation on tensors: the small base that `Fusion` shares with data transformations.

    name: what the operation is called; device: where it makes its tensors.
    """

    def __init__(self, name: str = "base_function", device: str = "cpu") -> None:
        self.name = name
        self.device = str(device)

    def get_name(self) -> str:
        """Return the operation's name."""
        return self.name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the operation; a subclass gives it."""
        not_given(self, "forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the operation, as `forward` does."""
        return self.forward(*args, **kwargs)

    def to_config(self) -> dict[str, Any]:
        """Return `{"function_class", "function_parameters"}` as plain data."""
        return {
            "function_class": type(self).__name__,
            "function_parameters": {"name": self.name, "device": self.device},
        }

    @staticmethod
    def func_x(x: Tensor, functions: Any, device: str = "cpu") -> Tensor:
        """Apply a function, a name, a config, or a list of these to `x` (any shape), in order; None leaves it as it is.

        Raises FusionError for a name that is not on the allow-list, and for a result that is not a tensor.
        """
        for f in callables.resolve(functions):
            x = f(x)
            if not isinstance(x, Tensor):
                raise FusionError(
                    f"a pre- or postprocess function returns one tensor; {callables.describe(f)} returned "
                    f"{type(x).__name__}. Wrap it, as in `lambda x: f(x)[0]`."
                )
        return x

    @staticmethod
    def str_func_x(x: Tensor, func: str | Callable[..., Tensor], device: str = "cpu", **parameters: Any) -> Tensor:
        """Apply one function, given by name or as a callable, to `x`, with parameters by keyword."""
        if parameters and isinstance(func, str):
            return function.func_x(x, {"function_class": func, "function_parameters": parameters}, device)
        return function.func_x(x, functools.partial(func, **parameters) if callable(func) else func, device)

    @staticmethod
    def functions_to_configs(
        functions: Any, class_name: str = "function_class", parameter_name: str = "function_parameters"
    ) -> dict[str, Any] | list[dict[str, Any]] | None:
        """Return the config of a function, the list of configs of several, or None for none, under the given keys."""

        def renamed(config: dict[str, Any]) -> dict[str, Any]:
            return {class_name: config["function_class"], parameter_name: config["function_parameters"]}

        configs = callables.to_configs(callables.resolve(functions))
        return list(map(renamed, configs)) if isinstance(configs, list) else configs and renamed(configs)


def not_given(instance: Any, method: str) -> NoReturn:
    """Raise the NotImplementedError of a method that a subclass has to give, naming both."""
    raise NotImplementedError(f"{type(instance).__name__} does not give {method}().")
