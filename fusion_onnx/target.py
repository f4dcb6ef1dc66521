"""What the command line exports: `path/to/file.py:callable` or `package.module:callable`."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class TargetError(ValueError):
    """A target that does not lead to a module and its example inputs."""


def load_target(target: str) -> "tuple[torch.nn.Module, Any]":
    """Return the module that the target's callable builds, and the example inputs.

    The callable returns the module, `(module, example_inputs)` or `(module, args, kwargs)`. Where it returns the module
    alone, the inputs come from `example_inputs` beside it (a tuple, a mapping, or a function that returns one); a
    fusion that has `dims` needs none. This runs the file's code. A `.pt2` file is a program that torch.export saved.
    """
    import torch

    if target.endswith(".pt2"):
        return _program(target)

    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise TargetError(
            f"a target is path/to/file.py:callable or package.module:callable; got {target!r}. "
            "Such as models/digits.py:build."
        )
    source = _told(target, lambda: _file(Path(place)) if place.endswith(".py") else _module(place))
    if not hasattr(source, name):
        public = [key for key, value in vars(source).items() if callable(value) and not key.startswith("_")]
        raise TargetError(f"{place} has no {name!r}; it has {', '.join(public)}.")
    built = getattr(source, name)
    if callable(built) and not isinstance(built, torch.nn.Module):
        built = _told(target, built)
    module, *given = built if isinstance(built, tuple) and len(built) in (2, 3) else (built,)
    inputs = _call(*given)
    if not isinstance(module, torch.nn.Module):
        raise TargetError(f"{target} gives a {type(module).__name__}, not a torch.nn.Module.")
    if inputs is None:
        inputs = getattr(source, "example_inputs", None)
        inputs = _told(target, inputs) if callable(inputs) else inputs
    if inputs is None:
        inputs = _of_fusion(module)
    if inputs is None:
        raise TargetError(
            f"{target} gives no example inputs; return (module, example_inputs), or define example_inputs() in {place}."
        )
    return module, inputs


def _call(args: Any = None, kwargs: Any = None) -> Any:
    if not kwargs:
        return args
    from fusion_onnx.verification.arguments import Keywords

    return (*(args or ()), Keywords(kwargs))


def _program(path: str) -> tuple[Any, Any]:
    from fusion_exporters.programs import as_program

    program = as_program(path)
    return program, _call(*program.example_inputs or ())


def _told(target: str, call: Callable[[], Any]) -> Any:
    """Call the user's code: what it prints goes to stderr, what it raises becomes a TargetError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except TargetError:
        raise
    except (Exception, SystemExit) as error:
        raise TargetError(f"{target} failed. {type(error).__name__}: {error}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"there is no file {path}.")
    _importable(Path.cwd(), path.resolve().parent)
    name = f"fusion_onnx_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise TargetError(f"there is no module {name!r} here or among the installed packages.") from error
        raise


def _importable(*folders: Path) -> None:
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]


def _of_fusion(module: "torch.nn.Module") -> Any:
    import torch

    from fusion_onnx.contract import Fusion
    from fusion_onnx.layer import FusionLayer

    fusion = module.fusion if isinstance(module, FusionLayer) else module
    if not isinstance(fusion, Fusion) or fusion.dims is None:
        return None
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(4, width, generator=generator) for width in fusion.dims]
    length = fusion.calculate_l()
    if fusion is module and length:
        return xs, torch.randn(length, generator=generator)
    return (xs,) if fusion is module else tuple(xs)
