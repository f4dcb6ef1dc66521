"""What the command line exports: `path/to/file.py:callable` or `package.module:callable`."""

import contextlib
import functools
import importlib
import importlib.util
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class ModuleError(ValueError):
    """An address that does not lead to a module and its example inputs."""


def load_module(address: str, **options: Any) -> "tuple[torch.nn.Module, Any]":
    """Return the module that the callable at an address builds, called with the options, and the example inputs.

    The callable returns the module, `(module, example_inputs)` or `(module, args, kwargs)`. Where it returns the module
    alone, the inputs come from `example_inputs` beside it (a tuple, a mapping, or a function that returns one); a
    fusion that has `dims` needs none. This runs the file's code. A `.pt2` file is a program that torch.export saved.
    """
    import torch

    if address.endswith(".pt2"):
        return _program(address)

    place, _, name = address.rpartition(":")
    if not place or not name.isidentifier():
        raise ModuleError(
            "a module is given as path/to/file.py:callable or package.module:callable, such as net.py:build; "
            f"got {address!r}."
        )
    source = _guarded(address, lambda: _file(Path(place)) if place.endswith(".py") else _module(place))
    if not hasattr(source, name):
        public = [key for key, value in vars(source).items() if callable(value) and not key.startswith("_")]
        raise ModuleError(f"{place} has no {name!r}; it has {', '.join(public)}.")
    built = getattr(source, name)
    if callable(built) and not isinstance(built, torch.nn.Module):
        built = _guarded(address, functools.partial(built, **options))
    elif options:
        raise ModuleError(f"{address} is a module, not a callable: it takes no {', '.join(options)}.")
    module, *example = built if isinstance(built, tuple) and len(built) in (2, 3) else (built,)
    inputs = _call(*example)
    if not isinstance(module, torch.nn.Module):
        raise ModuleError(f"{address} gives a {type(module).__name__}, not a torch.nn.Module.")
    if inputs is None:
        inputs = getattr(source, "example_inputs", None)
        inputs = _guarded(address, inputs) if callable(inputs) else inputs
    if inputs is None:
        inputs = _of_fusion(module)
    if inputs is None:
        raise ModuleError(
            f"{address} gives no example inputs; return (module, example_inputs), or define example_inputs() in "
            f"{place}."
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


def _guarded(address: str, call: Callable[[], Any]) -> Any:
    """Call the user's code: what it prints goes to stderr, what it raises becomes a ModuleError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except ModuleError:
        raise
    except (Exception, SystemExit) as error:
        raise ModuleError(f"{address} failed{_where(error)}. {type(error).__name__}: {error}") from error


def _where(error: BaseException) -> str:
    """Return the innermost line of the user's own code; what packages and this one do is not his to mend."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_foreign(f.filename)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].line}" if frames else ""


def _is_foreign(file: str) -> bool:
    packages = sysconfig.get_paths()
    return file.startswith((str(Path(__file__).parents[1]), packages["purelib"], packages["stdlib"], "<"))


def parsed_axes(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return {input: {axis: name}} from texts such as x:0=batch,1=time."""
    axes_of: dict[str, dict[int, str]] = {}
    for text in texts:
        name, _, axes = text.partition(":")
        pairs = [pair.partition("=") for pair in axes.split(",")]
        if not name or not all(axis.lstrip("-").isdigit() and label.isidentifier() for axis, _, label in pairs):
            raise ModuleError(f"--dynamic is such as x:0=batch,1=time; got {text!r}.")
        axes_of.setdefault(name, {}).update({int(axis): label for axis, _, label in pairs})
    return axes_of


def parsed_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return arguments from texts such as width=3 or kind=mean: what is JSON is read as that, the rest is text."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ModuleError(f"--set is such as width=3; got {text!r}.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def load_weights(module: Any, path: Path) -> None:
    """Load a state_dict into a module: what torch.save wrote, without running code in it, or a .safetensors file."""
    if not path.is_file():
        raise ModuleError(f"there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            import torch

            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:
        raise ModuleError(f"{path} holds no state_dict that can be read safely: {_first(error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):  # as trainers nest it
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    try:
        module.load_state_dict(state)
    except Exception as error:
        raise ModuleError(f"{path} is not of this module: {error}") from error


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModuleError(f"there is no file {path}.")
    _importable(Path.cwd(), path.resolve().parent)
    name = f"fusion_onnx_module_{path.stem}"
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
            raise ModuleError(f"there is no module {name!r} here or among the installed packages.") from error
        raise


def _importable(*folders: Path) -> None:
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]


def _of_fusion(module: "torch.nn.Module") -> Any:
    import torch

    from fusion_onnx.contract import Fusion
    from fusion_onnx.contract.layer import FusionLayer

    fusion = module.fusion if isinstance(module, FusionLayer) else module
    if not isinstance(fusion, Fusion) or fusion.dims is None:
        return None
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(4, width, generator=generator) for width in fusion.dims]
    length = fusion.calculate_l()
    if fusion is module and length:
        return xs, torch.randn(length, generator=generator)
    return (xs,) if fusion is module else tuple(xs)
