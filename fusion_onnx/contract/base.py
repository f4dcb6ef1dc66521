"""`FusionBase`: the specification's base class. Constructor, dims, pre- and postprocess functions, config.

What a subclass gives is `calculate_n`, `calculate_l` and `forward`; `Fusion` (fusion.py) makes the latter from a
strategy's maths, and is the class to inherit from.
"""

import inspect
import re
from abc import ABCMeta
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fusion_onnx.contract import callables, checks
from fusion_onnx.contract.callables import FunctionList
from fusion_onnx.contract.function import function, not_given
from fusion_onnx.contract.options import (
    OptionError,
    accept_surplus,
    check_known,
    checked_dims,
    parameters_of,
    refuse_keyword,
    shown_values,
    values_of,
    whole,
)
from fusion_onnx.errors import FusionError

FUNCTIONS = ("preprocess_functions", "postprocess_functions")
HOOKS = ("pre_process", "post_process")


class _IndexError(FusionError, IndexError):
    """`get_dim` out of bounds: existing callers catch ValueError or IndexError."""


class _AbstractError(NotImplementedError, TypeError):
    """The base class itself was instantiated."""


class Contract(ABCMeta):
    """Checks a fusion's options before its constructor runs, and completes it after, so that no subclass has to.

    An ABCMeta, so that a fusion may inherit from an abstract class too.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Check the options, construct the fusion, and complete it."""
        if cls.__module__.rpartition(".")[0] == __package__:
            raise _AbstractError(
                f"{cls.__name__} is the base class. Subclass it, or take a strategy: "
                "fusion_onnx.create('sum', dims=[4, 4])."
            )
        check_known(cls.__name__, kwargs, cls.options())  # type: ignore[attr-defined]
        fusion = super().__call__(*args, **kwargs)
        fusion._complete()
        fusion._completed = True
        return fusion


class FusionBase(torch.nn.Module, function, metaclass=Contract):
    """The specification's base class: k tensors (..., n_i) in, one tensor (..., n) out. See `Fusion`."""

    needs_dims: ClassVar[bool] = False
    """Whether the strategy's shapes follow from the input widths, so that `dims` cannot be left out."""
    equal_dims: ClassVar[bool] = False
    """Whether all inputs have one shape; otherwise they agree on all axes but the last."""

    _alias_of: ClassVar[type["FusionBase"] | None] = None
    _completed: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("calculate_n", "calculate_l"):
            accept_surplus(cls, name)

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        name: str = "base_fusion",
        require_parameters: bool = False,
        preprocess_functions: Any = None,
        postprocess_functions: Any = None,
        preprocess_function_configs: Any = None,
        postprocess_function_configs: Any = None,
        device: str = "cpu",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        for surplus in (*map(repr, args), *kwargs):
            raise OptionError(
                f"{type(self).__name__} was given {surplus}, which it does not know; "
                f"its options are {', '.join(self.options())}."
            )
        torch.nn.Module.__init__(self)
        function.__init__(self, self._default_name() if name == "base_fusion" else name, device)
        self.dims = checked_dims(dims)
        if self.dims is None and self.needs_dims:
            raise FusionError(f"{self.strategy()} needs the widths of its inputs: give dims=[n_1, ..., n_k].")
        self.require_parameters = bool(require_parameters)
        self._functions: dict[str, tuple[Any, ...]] = {"pre_process": (), "post_process": ()}
        self._set_functions(
            pre_process=_resolved("preprocess", preprocess_functions, preprocess_function_configs),
            post_process=_resolved("postprocess", postprocess_functions, postprocess_function_configs),
        )

    # --- what a subclass gives ------------------------------------------------------------------------------------

    def calculate_n(self, dims: Sequence[int] | None = None, *args: Any, **kwargs: Any) -> int:
        """Return n, the output's last dimension, for the given or the fusion's own input widths.

        A subclass writes it without `*args, **kwargs`. What callers give beyond its parameters is taken all the same:
        by position without effect, as `calculate_l(dims)`; a keyword that it does not have is a FusionError.
        """
        not_given(self, "calculate_n")

    def calculate_l(self, *args: Any, **kwargs: Any) -> int:
        """Return l, the number of trainable parameters; written and called as `calculate_n` is."""
        not_given(self, "calculate_l")

    def forward(
        self, x: Sequence[Tensor], w: Tensor | None = None, device: str = "cpu", *args: Any, **kwargs: Any
    ) -> Tensor:
        """Fuse k tensors (..., n_i) into one (..., n); a subclass gives it."""
        not_given(self, "forward")

    # --- dims -----------------------------------------------------------------------------------------------------

    def get_dim(self, index: int) -> int:
        """Return the width of input `index`, from 0; raises a ValueError that is also an IndexError if there is none.

        A negative index has none, nor has one that is no whole number.
        """
        if self.dims is None:
            raise _IndexError(f"get_dim({index!r}): dims is not set on {self.name!r}.")
        place = whole(index)
        if place is None or not 0 <= place < len(self.dims):
            raise _IndexError(
                f"get_dim({index!r}): {self.name!r} has {len(self.dims)} dims, {list(self.dims)}; "
                f"the index goes from 0 to {len(self.dims) - 1}."
            )
        return self.dims[place]

    def get_dims(self) -> list[int] | None:
        """Return the input widths, or None where they are not set."""
        return None if self.dims is None else list(self.dims)

    def get_num(self) -> int:
        """Return how many dims there are; 0 where they are not set."""
        return 0 if self.dims is None else len(self.dims)

    # --- pre- and postprocess functions ---------------------------------------------------------------------------

    def pre_process(self, x: Tensor, device: str = "cpu", *args: Any, **kwargs: Any) -> Tensor:
        """Apply the preprocess functions to a tensor, in order; a hook, which a subclass or an instance overrides.

        x: the inputs stacked along a new first axis where their shapes agree, else one after the other.
        """
        if kwargs:
            refuse_keyword(self, "pre_process", kwargs, ("x", "device"))
        return self.func_x(x, self._checked_functions("pre_process"), device)

    def post_process(self, x: Tensor, device: str = "cpu", *args: Any, **kwargs: Any) -> Tensor:
        """Apply the postprocess functions to the output, in order; a hook, as `pre_process` is."""
        if kwargs:
            refuse_keyword(self, "post_process", kwargs, ("x", "device"))
        return self.func_x(x, self._checked_functions("post_process"), device)

    @property
    def preprocess_functions(self) -> FunctionList:
        """The functions applied to the inputs, as a list: modules that are put into it, or assigned, are registered."""
        return FunctionList(lambda: self._applied("pre_process"), lambda new: self._set_functions(pre_process=new))

    @preprocess_functions.setter
    def preprocess_functions(self, functions: Any) -> None:
        self._set_functions(pre_process=callables.resolve(functions))

    @property
    def postprocess_functions(self) -> FunctionList:
        """The functions applied to the output, likewise."""
        return FunctionList(lambda: self._applied("post_process"), lambda new: self._set_functions(post_process=new))

    @postprocess_functions.setter
    def postprocess_functions(self, functions: Any) -> None:
        self._set_functions(post_process=callables.resolve(functions))

    def processes(self, hook: str) -> bool:
        """Return whether `pre_process`, or `post_process`, does anything: it has functions, or is overridden."""
        return bool(self._functions[hook]) or hook in self.__dict__ or getattr(type(self), hook) is not WRITTEN[hook]

    def _applied(self, hook: str) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return a hook's functions; modules are those in `process_modules`, where a tool may replace them."""
        return tuple(self.process_modules[f] if isinstance(f, int) else f for f in self._functions[hook])

    def _set_functions(self, **changes: Sequence[Callable[[Tensor], Tensor]]) -> None:
        """Keep the functions of one hook or both, and register modules: .to(), eval(), state_dict() reach them."""
        functions = {hook: self._applied(hook) for hook in self._functions} | changes
        modules: list[torch.nn.Module] = []
        places: dict[str, tuple[Any, ...]] = {}
        for hook, members in functions.items():
            places[hook] = ()
            for f in members:
                if isinstance(f, torch.nn.Module):
                    modules.append(f)
                places[hook] += (len(modules) - 1 if isinstance(f, torch.nn.Module) else f,)
        for f in (f for members in functions.values() for f in members):  # behind the others, whose names stay
            owner = callables.module_of(f)
            if owner is not None and not any(owner is module for module in modules):
                modules.append(owner)
        self._functions = places
        if modules:
            self.process_modules = torch.nn.ModuleList(modules)
        else:
            self._modules.pop("process_modules", None)

    def _checked_functions(self, hook: str) -> tuple[Callable[[Tensor], Tensor], ...]:
        functions = self._applied(hook)
        if not self.training and not torch.compiler.is_compiling():
            for f in functions:
                for module in callables.trained_unseen(f, self):
                    raise FusionError(
                        f"{self.name}: the function {callables.describe(f)} holds a {type(module).__name__} in "
                        "training mode, which eval() does not reach there. Give the module itself as the function, or "
                        "one that holds it."
                    )
        return functions

    # --- names, options, checks -----------------------------------------------------------------------------------

    @classmethod
    def strategy(cls) -> str:
        """Return the strategy's name: the snake case of the class name, without its ending `Fusion`."""
        name = (cls.__dict__.get("_alias_of") or cls).__name__
        name = name.removesuffix("Fusion") or name
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

    def _default_name(self) -> str:
        return "base_fusion"

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """Return the constructor's named parameters, the class's own before those of its bases."""
        return parameters_of(cls, FusionBase)

    def to_config(self) -> dict[str, Any]:
        """Return the fusion as plain data, `{"function_class": ..., "function_parameters": {...}}`.

        `fusion_onnx.from_config` gives back a fusion with the same outputs for the same `w`. Trained state of modules
        among the pre- and postprocess functions travels in the `state_dict`, as for any module.
        """
        parameters = self._option_values()
        for key in ("preprocess", "postprocess"):
            parameters[f"{key}_function_configs"] = callables.to_configs(parameters.pop(f"{key}_functions"))
        values = {key: value for key, value in parameters.items() if value is not None}
        return {"function_class": self.strategy(), "function_parameters": values}

    def extra_repr(self) -> str:
        """Show the options that were given, in `print(model)`."""
        values = {**self.__dict__, **{key: tuple(getattr(self, key)) for key in FUNCTIONS}}
        return shown_values(values, self.options())

    def check_inputs(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs as a list; raise FusionError where they break the contract."""
        return checks.checked_inputs(self.name, self.dims, self.equal_dims, x)

    def _preprocess_all(self, xs: list[Tensor]) -> list[Tensor]:
        if all(t.shape == xs[0].shape for t in xs):
            stacked = torch.stack(xs)
            xs = checks.checked_stack(self.name, self.pre_process(stacked), stacked)
        else:
            xs = [self.pre_process(t.clone()) for t in xs]  # a function may work in place; stacking copied as well
        return self.check_inputs(xs)

    def _complete(self) -> None:
        """Check what the finished constructor holds."""
        if self.dims is not None and type(self).calculate_n is not FusionBase.calculate_n:
            self.calculate_n(self.dims)

    def _option_values(self, without: Iterable[str] = ()) -> dict[str, Any]:
        return values_of(self, [key for key in self.options() if key not in without])

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; raises AttributeError for an option, and for a module in a method's place."""
        if name in FUNCTIONS:
            object.__setattr__(self, name, value)  # torch would register a module under this name
            return
        if isinstance(value, torch.nn.Module) and inspect.isfunction(getattr(type(self), name, None)):
            kind = name.replace("_", "") + "_functions"  # torch would register it, and go on calling the method
            way = f"give the module as {kind}" if name in HOOKS else "write a method that calls the module"
            raise AttributeError(f"{type(self).__name__}.{name} is a method, and no module takes its place; {way}.")
        if self._completed:
            self._check_assignment(name, value)
        if name == "device":
            value = str(value)
        super().__setattr__(name, value)

    def _check_assignment(self, name: str, value: Any) -> None:
        """Refuse what may not be assigned after construction: nothing here; a subclass has its own rules."""


def _resolved(kind: str, functions: Any, configs: Any) -> tuple[Callable[[Tensor], Tensor], ...]:
    if functions is not None and configs is not None:
        raise FusionError(f"give {kind}_functions or {kind}_function_configs, not both.")
    return callables.resolve(functions if configs is None else configs)


WRITTEN = {name: vars(FusionBase)[name] for name in HOOKS}
"""The hooks as they are written here: what a class or an instance has else is an override."""
