"""Pre- and postprocess functions: given as callables, modules, names or configs; the allow-list of names.

A name is looked up in fixed lists below; text never imports a module and never reaches an attribute that is not listed.
A function of your own gets a name with `register_function("double", double)`.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import torch

from fusion_onnx.errors import FusionError, suggestion

Function = Callable[[torch.Tensor], torch.Tensor]

# Functions of one tensor that keep no state and touch nothing outside it.
_FUNCTIONAL = """
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh layer_norm leaky_relu log_softmax
    logsigmoid mish normalize relu relu6 rms_norm rrelu selu sigmoid silu softmax softmin softplus softshrink
    softsign tanh tanhshrink threshold
""".split()  # noqa: SIM905
_TORCH = """
    abs acos asin atan ceil clamp cos cosh erf exp expm1 flatten floor log log10 log1p log2 logit nan_to_num neg
    reciprocal relu round rsqrt sigmoid sign sin sinh softmax sqrt square squeeze tan tanh transpose trunc unsqueeze
""".split()  # noqa: SIM905
_MODULES = """
    AlphaDropout BatchNorm1d BatchNorm2d CELU Conv1d Conv2d Dropout ELU Flatten GELU GroupNorm Hardshrink
    Hardsigmoid Hardswish Hardtanh Identity LayerNorm LeakyReLU Linear LogSigmoid LogSoftmax Mish PReLU RMSNorm ReLU
    ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold Unflatten
""".split()  # noqa: SIM905
_SPACES: dict[str, tuple[Any, list[str]]] = {
    "torch.nn.functional": (torch.nn.functional, _FUNCTIONAL),
    "torch": (torch, _TORCH),
    "torch.nn": (torch.nn, _MODULES),
}
_registered: dict[str, Any] = {}


def register_function(name: str, function: Any) -> Any:
    """Give a function, or a torch.nn.Module class, a name that configs may use; return it.

    Raises FusionError where the name is taken by something else.
    """
    if not callable(function):
        raise FusionError(f"register_function({name!r}): {function!r} is not callable.")
    if _table().get(name, function) is not function:
        raise FusionError(f"register_function({name!r}): the name is taken; choose another.")
    _registered[name] = function
    return function


def lookup(name: str) -> Any:
    """Return the function or module class of that name, from the lists and what was registered.

    The short name (`relu`) and the full one (`torch.nn.functional.relu`) are both understood.
    """
    table = _table()
    if name not in table:
        raise FusionError(
            f"unknown function {name!r}.{suggestion(name, table, 3)} Known are the activations of torch.nn.functional "
            "and torch.nn, and what fusion_onnx.register_function(name, function) was given."
        )
    return table[name]


def resolve(functions: Any) -> tuple[Function, ...]:
    """Return None, a callable, a module, a name, a config, or a list of these as a flat tuple of callables."""
    if functions is None:
        return ()
    if isinstance(functions, str):
        return (_build(functions, {}),)
    if isinstance(functions, Mapping):
        return (_from_config(functions),)
    if isinstance(functions, torch.nn.ModuleList):
        return tuple(functions)
    if callable(functions):
        if inspect.isclass(functions):
            raise FusionError(f"{functions.__name__} is a class; give an instance of it: {functions.__name__}().")
        return (functions,)
    if isinstance(functions, (list, tuple, FunctionList)):
        return tuple(f for one in functions for f in resolve(one))
    raise FusionError(f"a function is a callable, a module, a name, a config, or a list of these; got {functions!r}.")


class FunctionList(MutableSequence[Function]):
    """A fusion's pre- or postprocess functions: a list that hands each change to the fusion, which registers modules.

    `fusion.preprocess_functions.append("relu")`, `[0] = torch.nn.Dropout()`, `+= [f, g]`, `.clear()`.
    """

    def __init__(self, read: Callable[[], Sequence[Function]], write: Callable[[tuple[Function, ...]], None]) -> None:
        self._read, self._write = read, write

    def __len__(self) -> int:
        return len(self._read())

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __iter__(self) -> Iterator[Function]:
        return iter(self._read())

    def __setitem__(self, index: Any, value: Any) -> None:
        functions: list[Any] = list(self._read())
        functions[index] = value
        self._write(resolve(functions))

    def __delitem__(self, index: Any) -> None:
        functions = list(self._read())
        del functions[index]
        self._write(tuple(functions))

    def insert(self, index: int, value: Any) -> None:
        """Put a function, given in any way that the constructor takes, before the one at `index`."""
        functions: list[Any] = list(self._read())
        functions.insert(index, value)
        self._write(resolve(functions))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, tuple, FunctionList)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self._read()))


def module_of(function: Any) -> torch.nn.Module | None:
    """Return the module that a function calls as a whole: itself, that of a partial, of a bound `forward`."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType) and isinstance(function.__self__, torch.nn.Module):
        # another method may be that of a network which holds the fusion: registered, it would hold itself
        whole = function.__name__ in ("forward", "_wrapped_call_impl", "_call_impl")
        return function.__self__ if whole else None
    return function if isinstance(function, torch.nn.Module) else None


def trained_unseen(function: Any, owner: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield modules in training mode, where it makes a difference, that a function holds and `owner` does not register.

    A network that holds the owner has the say over both.
    """
    for module_inside in _modules_inside(function, 3):
        modules = [] if any(module is owner for module in module_inside.modules()) else module_inside.modules()
        for module in modules:
            if module.training and (isinstance(module, _BY_MODE) or getattr(module, "dropout", None)):
                yield module


_BY_MODE = (
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.RReLU,
)


def _modules_inside(value: Any, depth: int) -> Iterator[torch.nn.Module]:
    """Yield what stands in a partial's arguments, a closure, defaults, a bound method; lists of these too."""
    inner: list[Any] = []
    if isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        inner = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, (list, tuple)):
        inner = [*value]
    elif isinstance(value, dict):
        inner = [*value.values()]
    for part in inner if depth else ():
        if isinstance(part, torch.nn.Module):
            yield part
        else:
            yield from _modules_inside(part, depth - 1)


def to_configs(functions: Iterable[Function]) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Return the config of one function, a list of configs for several, None for none."""
    configs = [to_config(f) for f in functions]
    return None if not configs else configs[0] if len(configs) == 1 else configs


def to_config(function: Function) -> dict[str, Any]:
    """Return `{"function_class": name, "function_parameters": {...}}` for a function that has a name."""
    if isinstance(function, functools.partial) and not function.args:
        return {"function_class": _name_of(function.func), "function_parameters": dict(function.keywords)}
    if isinstance(function, torch.nn.Module):
        return {"function_class": _name_of(type(function)), "function_parameters": _module_parameters(function)}
    return {"function_class": _name_of(function), "function_parameters": {}}


def describe(function: Any) -> str:
    """Return a readable name for messages."""
    return getattr(function, "__name__", None) or type(function).__name__


def _table() -> dict[str, Any]:
    table = dict(_registered)
    for prefix, (space, names) in _SPACES.items():
        for name in names:
            table.setdefault(name, getattr(space, name))
            table[f"{prefix}.{name}"] = getattr(space, name)
    return table


def _name_of(target: Any) -> str:
    for name, entry in _table().items():
        if entry is target and ("." in name or name in _registered):
            return name
    raise FusionError(
        f"{describe(target)} has no name that a config could hold; give it one: "
        f"fusion_onnx.register_function('my_{describe(target).strip('<>')}', function)."
    )


def _from_config(config: Mapping[str, Any]) -> Function:
    unknown = set(config) - {"function_class", "function_parameters"}
    name, parameters = config.get("function_class"), config.get("function_parameters") or {}
    if unknown or not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise FusionError(
            f'a function\'s config is {{"function_class": name, "function_parameters": {{...}}}}; got {dict(config)!r}.'
        )
    return _build(name, dict(parameters))


def _build(name: str, parameters: dict[str, Any]) -> Function:
    target = lookup(name)
    try:
        signature: inspect.Signature | None = inspect.signature(target)
    except ValueError:  # some of torch's functions are built in and have none
        signature = None
    is_class = inspect.isclass(target)
    if signature is not None:
        try:
            signature.bind(*(() if is_class else (None,)), **parameters)
        except TypeError as error:
            raise FusionError(f"{name}: {error}; its parameters are {signature}.") from None
    if is_class:
        built: Function = target(**parameters)
        return built
    return functools.partial(target, **parameters) if parameters else target


def _module_parameters(module: torch.nn.Module) -> dict[str, Any]:
    """Read a module's constructor arguments back from its attributes, as torch.nn's modules keep them."""
    parameters = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        value = getattr(module, name, parameter.default)
        if isinstance(value, torch.Tensor) or (name == "bias" and value is None):
            value = value is not None  # a layer's `bias=True` became the bias itself
        value = list(value) if isinstance(value, tuple) else value
        if value is not parameter.default:
            parameters[name] = value
    return parameters
