"""A module's example: its positional arguments, behind them those given by keyword, and the tensors among them."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

ExampleInputs: TypeAlias = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""The positional arguments of a call, a single tensor, or a mapping of its keyword arguments."""


class ArgumentsError(ValueError):
    """An example that the module cannot be called with."""


class Keywords(dict[str, Any]):
    """Arguments given by keyword: the last of a call's arguments, where there are any."""


pytree.register_pytree_node(
    Keywords,
    lambda keywords: (list(keywords.values()), list(keywords)),
    lambda values, names: Keywords(zip(names, values, strict=True)),
)


class Arguments:
    """The arguments of one call, as `arguments` arranges them, and the tensors among them.

    leaves: all values in the arguments' order; places: where the tensors are among them, in the order of a graph's
    inputs.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.leaves, self._spec = pytree.tree_flatten(args)
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors, in the order of the graph's inputs."""
        return [self.leaves[i] for i in self.places]

    def with_leaves(self, leaves: Sequence[Any]) -> "Arguments":
        """Return arguments of the same structure with other values."""
        return Arguments(pytree.tree_unflatten(list(leaves), self._spec))


def arguments(module: torch.nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """Return the arguments of a call: a tuple, with `Keywords` behind the others where there are any.

    Args:
        module: what is called.
        inputs: a tensor, a tuple or list of the positional arguments, or a mapping of keyword arguments, such as a
            tokenizer gives.
        kwargs: keyword arguments beside positional ones.

    Raises ArgumentsError where the module's forward does not take them.
    """
    named = dict(kwargs or {})
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    elif isinstance(inputs, Mapping):
        inputs, named = (), {**inputs, **named}
    elif inputs is None and named:
        inputs = ()
    if not isinstance(inputs, (tuple, list)):
        raise ArgumentsError(
            "the example is a tuple of the module's positional arguments, or a mapping of its keyword arguments; got "
            f"{type(inputs).__name__}. For a bare fusion: ([x1, x2],)."
        )
    if inputs and isinstance(inputs[-1], Keywords):  # they were arranged before
        inputs, named = inputs[:-1], {**inputs[-1], **named}
    signature = _signature(module)
    try:
        signature.bind(*inputs, **named)
    except TypeError as error:
        raise ArgumentsError(
            f"{type(module).__name__}.forward{_shown(signature)}: {error}.{_advice(signature, named)}"
        ) from None
    order = list(signature.parameters)
    ordered = sorted(named, key=lambda name: order.index(name) if name in order else len(order))
    return (*inputs, Keywords((name, named[name]) for name in ordered)) if named else tuple(inputs)


def opened(module: Any) -> Any:
    """Return the module in what holds one: a program of torch.export, what torch.compile gives."""
    exported = sys.modules.get("torch.export")
    if exported is not None and isinstance(module, exported.ExportedProgram):
        return module.module()
    return getattr(module, "_orig_mod", module)


def call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function with arguments as `arguments` arranges them."""
    return function(*args[:-1], **args[-1]) if args and isinstance(args[-1], Keywords) else function(*args)


def positional(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments in the order of the parameters, up to the first that is not given."""
    if not args or not isinstance(args[-1], Keywords):
        return args
    return _signature(module).bind(*args[:-1], **args[-1]).args


def _signature(module: torch.nn.Module) -> inspect.Signature:
    try:
        return inspect.signature(module.forward)
    except ValueError:
        raise ArgumentsError(
            f"{type(module).__name__} has no forward in Python: torch.jit made it. Give the module that it was made of."
        ) from None


def _shown(signature: inspect.Signature) -> str:
    return f"({', '.join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())})"


def _advice(signature: inspect.Signature, named: Mapping[str, Any]) -> str:
    one = [p for p in signature.parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if named and len(one) == 1 and not {*named} & {*signature.parameters}:
        return " A mapping gives keyword arguments; for one argument that is a mapping: (mapping,)."
    return ""
