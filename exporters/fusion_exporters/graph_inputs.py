"""What goes in and out of the exported graph: names, example inputs fit for tracing, dynamic axes."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch.utils import _pytree as pytree

from fusion_exporters.errors import ExportError
from fusion_onnx.contract import Fusion
from fusion_onnx.verification.arguments import Arguments, ArgumentsError, Keywords, arguments, positional
from fusion_onnx.verification.trials import resized

Axes: TypeAlias = dict[int, str]
"""The names of an input's dynamic axes."""
Dynamic: TypeAlias = (
    str
    | Mapping[str, Mapping[int, str] | Sequence[str | None] | None]
    | Sequence[Mapping[int, str] | None]
    | Literal[False]
    | None
)
"""What `export(dynamic=...)` takes: a name for axis 0 of every input, names by input and axis, or None."""


@dataclass(frozen=True)
class GraphInputs:
    """The graph's inputs: the example arguments, and for each tensor among them its name and its dynamic axes."""

    args: tuple[Any, ...]
    names: list[str]
    axes: list[Axes]

    def leaves(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors among the arguments, in the order of the names."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, torch.Tensor))

    def sizes(self) -> dict[str, int]:
        """Return the example's size of each dynamic axis, by the axis's name."""
        return {n: t.shape[axis] for t, axes in zip(self.leaves(), self.axes, strict=True) for axis, n in axes.items()}

    def resize(self, axis: str, size: int) -> tuple[Any, ...]:
        """Return the arguments with another size of one dynamic axis, values drawn from the example's."""
        moves = [(i, place, size) for i, axes in enumerate(self.axes) for place, name in axes.items() if name == axis]
        return resized(Arguments(self.args), moves).args


def graph_inputs(
    module: torch.nn.Module,
    example_inputs: Any,
    dynamic: Dynamic,
    names: Sequence[str] | None,
    kwargs: Mapping[str, Any] | None = None,
) -> GraphInputs:
    """Check the example inputs and name what is in them.

    A list argument `x` of tensors becomes x1, x2, ...; a mapping `m` becomes m_key. The example's dynamic axes are
    brought to size 2 where they are 0 or 1, since tracing takes those two sizes for constants.
    """
    try:
        args = arguments(module, example_inputs, kwargs)
    except ArgumentsError as error:
        raise ExportError(str(error)) from None
    _refuse_aliases(args)
    leaf_names = _leaf_names(module, args)
    if names is not None:
        if isinstance(names, str) or len(names) != len(leaf_names) or not all(isinstance(n, str) and n for n in names):
            raise ExportError(
                f"input_names: the example has {len(leaf_names)} tensors, {leaf_names}; got {list(names)}."
            )
        leaf_names = list(names)
    if len(set(leaf_names)) != len(leaf_names):
        raise ExportError(f"two inputs have one name, {leaf_names}; give input_names.")
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    if not leaves:
        raise ExportError("example_inputs holds no tensor.")
    axes = _axes(module, args, dynamic, leaf_names, leaves)
    return GraphInputs(_with_two_rows(args, leaf_names, axes), leaf_names, axes)


def output_names(outputs: Any, names: Sequence[str] | None, inputs: Sequence[str]) -> list[str]:
    """Return the names, checked; where they are None, `y`, or `y1`, `y2`, ... for several, or a mapping's keys.

    An output that is None has no name. inputs: the inputs' names; an output of the same name gets `output_` before it,
    and is refused where `names` gives it.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]
    odd = [f"{_path(path)}{type(leaf).__name__}" for path, leaf in _not_tensors(outputs) if leaf is not None]
    if odd or not leaves:
        raise ExportError(f"a model returns tensors; the module returns {', '.join(odd) or 'nothing'}. Leave it out.")
    if names is not None:
        clash = sorted(set(names) & set(inputs))
        if isinstance(names, str) or len(names) != len(leaves) or len(set(names)) != len(names):
            raise ExportError(f"output_names: {len(leaves)} different names, one a tensor; got {names!r}.")
        if clash:
            raise ExportError(f"output_names: {clash} are names of inputs; choose others.")
        return list(names)
    keys = (
        [name for key, value in outputs.items() for name in _names_within(str(key), value)]
        if isinstance(outputs, Mapping)
        else []
    )
    if len(keys) != len(leaves) or len(set(keys)) < len(keys):
        keys = ["y"] if len(leaves) == 1 else [f"y{i}" for i in range(1, len(leaves) + 1)]
    return [f"output_{name}" if name in inputs else name for name in keys]


def none_outputs(outputs: Any) -> list[str]:
    """Return what of a module's outputs is None, and so is no output of the graph."""
    return [_path(path).removesuffix(" = ") or "the output" for path, leaf in _not_tensors(outputs) if leaf is None]


def _not_tensors(outputs: Any) -> list[tuple[Any, Any]]:
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    return [(path, leaf) for path, leaf in leaves if not isinstance(leaf, torch.Tensor)]


def _path(path: Any) -> str:
    return f"{pytree.keystr(path)} = " if path else ""


def _refuse_aliases(args: tuple[Any, ...]) -> None:
    places: dict[int, int] = {}
    for i, leaf in enumerate(pytree.tree_leaves(args), 1):
        if isinstance(leaf, torch.Tensor) and places.setdefault(id(leaf), i) != i:
            raise ExportError(
                f"example inputs {places[id(leaf)]} and {i} are the same tensor object; tracing would make one graph "
                "input of them. Give distinct tensors: x.clone()."
            )


def _leaf_names(module: torch.nn.Module, args: tuple[Any, ...]) -> list[str]:
    parameters = list(inspect.signature(module.forward).parameters.values())
    starred = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), len(args))
    names: list[str] = []
    for i, arg in enumerate(args):
        if isinstance(arg, Keywords):
            names += [leaf for key, value in arg.items() for leaf in _names_within(key, value)]
        elif i >= starred and isinstance(arg, torch.Tensor):
            names.append(f"{parameters[starred].name}{i - starred + 1}")
        else:
            names += _names_within(parameters[min(i, starred)].name, arg)
    return names


def _names_within(name: str, value: Any) -> list[str]:
    if isinstance(value, torch.Tensor):
        return [name]
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _names_within(f"{name}_{key}", item)]
    if isinstance(value, (list, tuple)):
        name += "_" if name[-1:].isdigit() else ""  # a list within a list: x1_1, for x11 is the eleventh of a flat one
        return [leaf for i, item in enumerate(value, 1) for leaf in _names_within(f"{name}{i}", item)]
    return []


def _axes(
    module: torch.nn.Module, args: tuple[Any, ...], dynamic: Dynamic, names: list[str], leaves: list[torch.Tensor]
) -> list[Axes]:
    if dynamic is None or dynamic is False:
        return [{} for _ in leaves]
    if isinstance(dynamic, str):
        if not dynamic.isidentifier():
            raise ExportError(f"an axis has a name, such as 'batch'; got dynamic={dynamic!r}.")
        # the last axis holds the features, so a tensor of rank 1 has no batch; nor have a fusion's parameters
        parameters = positional(module, args)[1:2] if isinstance(module, Fusion) else ()
        return [{0: dynamic} if t.ndim >= 2 and not any(t is p for p in parameters) else {} for t in leaves]
    if isinstance(dynamic, Mapping):
        unknown = [key for key in dynamic if key not in names]
        if unknown:
            raise ExportError(f"dynamic names {unknown}, which are no inputs; the inputs are {names}.")
        by_input: list[Any] = [dynamic.get(name) for name in names]
    elif isinstance(dynamic, (tuple, list)) and len(dynamic) == len(leaves):
        by_input = list(dynamic)
    else:
        raise ExportError(
            'dynamic is "batch" (axis 0 of every input), None (all static), a mapping {input: {axis: name}}, or one '
            f"{{axis: name}} for each of the inputs {names}; got {dynamic!r}."
        )
    return [
        _axes_of_input(name, axis_names, leaf) for name, axis_names, leaf in zip(names, by_input, leaves, strict=True)
    ]


def _axes_of_input(name: str, axis_names: Any, leaf: torch.Tensor) -> Axes:
    if axis_names is None:
        return {}
    if isinstance(axis_names, Mapping):
        pairs = dict(axis_names)
    elif isinstance(axis_names, (list, tuple)):
        pairs = {axis: one for axis, one in enumerate(axis_names) if one is not None}
    else:
        raise ExportError(f"dynamic[{name!r}] is a mapping {{axis: name}}; got {axis_names!r}.")
    axes: Axes = {}
    for axis, axis_name in pairs.items():
        if not isinstance(axis, int) or not -leaf.ndim <= axis < leaf.ndim:
            raise ExportError(f"dynamic[{name!r}]: axis {axis!r} is not one of the {leaf.ndim} axes of {name}.")
        if not isinstance(axis_name, str) or not axis_name.isidentifier():
            raise ExportError(f"dynamic[{name!r}]: an axis has a name, such as 'batch'; got {axis_name!r}.")
        axes[axis % leaf.ndim] = axis_name
    return axes


def _with_two_rows(args: tuple[Any, ...], names: list[str], axes: list[Axes]) -> tuple[Any, ...]:
    leaves, spec = pytree.tree_flatten(args)
    index = iter(range(len(names)))
    where = {i: next(index) for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    sizes: dict[str, tuple[str, int]] = {}
    for i, n in where.items():
        leaf = leaves[i].detach()
        for axis, axis_name in axes[n].items():
            first, size = sizes.setdefault(axis_name, (names[n], leaf.shape[axis]))
            if size != leaf.shape[axis]:
                raise ExportError(
                    f"axis {axis_name!r} has one size: {first} has {size}, {names[n]} has {leaf.shape[axis]}."
                )
            if leaf.shape[axis] == 0:
                shape = list(leaf.shape)
                shape[axis] = 2
                leaf = leaf.new_zeros(shape)
            elif leaf.shape[axis] == 1:
                leaf = torch.cat([leaf, leaf], dim=axis)
        leaves[i] = leaf
    enlarged: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
    return enlarged
