"""What torch.export gives: a program that brings an example and the axes for which it was traced."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from fusion_exporters.errors import ExportError
from fusion_exporters.graph_inputs import Axes
from fusion_exporters.translation.tracing import quiet
from fusion_onnx import registry

SUFFIX = ".pt2"


def as_program(module: Any) -> Any:
    """Return a torch.export.ExportedProgram: the module itself, or what is saved at this path; None for all else."""
    if isinstance(module, torch.export.ExportedProgram):
        return module
    if isinstance(module, (str, os.PathLike)) and os.fspath(module).endswith(SUFFIX):
        if not os.path.isfile(module):
            raise FileNotFoundError(f"there is no file {os.fspath(module)}.")
        for name in registry.names():  # the program may call each one's torch op
            registry.get(name)
        try:
            with quiet():
                return torch.export.load(module)
        except Exception as error:
            raise ExportError(f"{module} is no program that torch.export saved: {error}") from error
    return None


def example_of(program: Any, inputs: Any, kwargs: Mapping[str, Any] | None, dynamic: Any) -> tuple[Any, Any, Any]:
    """Return example, keyword arguments and dynamic axes of a program, where the caller gives none."""
    if inputs is None and not kwargs:
        if program.example_inputs is None:
            raise ExportError("the program brings no example; give example_inputs.")
        inputs, kwargs = program.example_inputs
    return inputs, kwargs, _axes(program) if dynamic == "batch" else dynamic


def _axes(program: Any) -> list[Axes]:
    """Return each input's dynamic axes: "batch" is the symbol of a first axis, others have the name of their place."""
    users = {spec.arg.name: spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = {
        node.name: node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in users and isinstance(node.meta.get("val"), torch.Tensor)
    }
    names: dict[str, str] = {}
    for name, value in values.items():
        for axis, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                first = axis == 0 and "batch" not in names.values()
                names.setdefault(str(size), "batch" if first else f"{name}_axis_{axis}")
    return [
        {axis: names[str(size)] for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)}
        for value in values.values()
    ]
