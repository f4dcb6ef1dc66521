"""tinyBIG's fusions under tinyBIG's names, for its users to import: `tinybig.fusion` becomes `fusion_onnx.tinybig`.

The names come from the strategies' classes. What tinyBIG's callers rely on is here: its numbers for its weights (its
three Kronecker concatenations reshape an outer product), its order of positional parameters, `get_name()`, `dims` as a
list, `metric` and `weights`, its base classes `fusion` and `function`, and its configs.

>>> from fusion_onnx.tinybig import hm_parameterized_concatenation_fusion, max_fusion
>>> hm_parameterized_concatenation_fusion(2, dims=[4, 8], n=6).product
'outer'
>>> max_fusion(dims=[4, 4]).get_name()
'max_fusion'
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.config import parse
from fusion_onnx.contract import Fusion, callables
from fusion_onnx.contract.function import function as function
from fusion_onnx.errors import FusionError
from fusion_onnx.fusions import _folder

_OWN = ("from_config", "function", "fusion")
_METRICS = [f"{name}_fusion" for name in "max min sum mean prod median l1_norm l2_norm".split()]  # noqa: SIM905
_WEIGHTED = ("summation_fusion", "average_fusion", "parameterized_weighted_summation_fusion")
_POSITIONAL = {
    **dict.fromkeys(_METRICS, "name dims"),
    "metric_fusion": "dims metric name",
    "weighted_summation_fusion": "dims weights name",
    "parameterized_concatenation_fusion": "n dims name require_parameters",
    "lowrank_parameterized_concatenation_fusion": "r name n dims",
    "hm_parameterized_concatenation_fusion": "p q name n dims",
    "lphm_parameterized_concatenation_fusion": "r p q name n dims",
    "dual_lphm_parameterized_concatenation_fusion": "r p q name n dims",
    "random_matrix_adaption_parameterized_concatenation_fusion": "r name n dims",
}
"""tinyBIG's order of positional parameters, where it is not the common one."""
_COMMON = "dims name require_parameters"


class _PositionError(FusionError, TypeError):
    """Arguments that do not fit tinyBIG's order."""


class fusion(Fusion):
    """tinyBIG's base class of fusions: `Fusion`, with `dims` as a list, and function configs as tinyBIG writes them."""

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
        before, before_configs = _functions(preprocess_functions, preprocess_function_configs)
        after, after_configs = _functions(postprocess_functions, postprocess_function_configs)
        super().__init__(
            dims, name, require_parameters, before, after, before_configs, after_configs, device, *args, **kwargs
        )

    @property  # type: ignore[override]
    def dims(self) -> list[int] | None:
        """The input widths, or None where they are not set; a copy, as that of `get_dims()`."""
        widths = self.__dict__["dims"]
        return None if widths is None else list(widths)

    @dims.setter
    def dims(self, widths: tuple[int, ...] | None) -> None:
        self.__dict__["dims"] = widths


@functools.cache
def _classes() -> dict[str, type[Fusion]]:
    return {name: _tinybig_class(cls, name) for cls in map(_folder.load, _folder.names()) for name in cls.tinybig}


def _tinybig_class(cls: Any, name: str) -> type[Fusion]:
    """Return the strategy's class under tinyBIG's name, with what tinyBIG's callers rely on."""
    options = {key: parameter.replace(kind=parameter.KEYWORD_ONLY) for key, parameter in cls.options().items()}
    options["name"] = options["name"].replace(default=name)
    order = _POSITIONAL.get(name, _COMMON).split()
    first = [options.pop(key).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for key in order]
    signature = inspect.Signature([*first, *options.values()])

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        try:
            arguments = signature.bind(*args, **options).arguments
        except TypeError as error:
            raise _PositionError(
                f"{name}: {error}. It takes {', '.join(signature.parameters)}; the first {len(order)} by position too, "
                "as tinyBIG has it."
            ) from None
        arguments = {"name": name, **cls.tinybig_defaults, **arguments}
        if not isinstance(arguments["name"], str):
            raise _PositionError(
                f"{name}: its name is text; got {arguments['name']!r}. By position it takes {', '.join(order)}, as "
                f"tinyBIG has it; give dims by keyword: {name}(dims=[4, 4])."
            )
        super(cls_of_tinybig, self).__init__(**arguments)

    __init__.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
    )
    body: dict[str, Any] = {"__init__": __init__, "__doc__": cls.__doc__, "__module__": __name__, "_alias_of": cls}
    if name in _METRICS:
        body["metric"] = property(lambda self: _metric(cls))
    if name in _WEIGHTED:
        body["weights"] = property(_weights)
    cls_of_tinybig: type[Fusion] = type(cls)(name, (cls, fusion), body)
    return cls_of_tinybig


def _metric(cls: type[Fusion]) -> Callable[..., Tensor]:
    """Return what tinyBIG has as the `metric` of a fusion: the reduction of a tensor (N, k) along `dim`."""

    def metric(x: Tensor, dim: int = 1) -> Tensor:
        reduced: Tensor = cls()(list(x.unbind(dim)))
        return reduced

    metric.__name__ = f"batch_{cls.strategy()}"
    return metric


def _weights(self: Fusion) -> Tensor | None:
    """The fixed weights (k,), which tinyBIG keeps on its sums; None where they are trained, or dims is not set."""
    if self.require_parameters or not self.get_num():
        return None
    return self.fuse(list(torch.eye(self.get_num())), None)  # what a sum gives for unit vectors


# --- configs ----------------------------------------------------------------------------------------------------------


def from_config(config: Mapping[str, Any] | str) -> Fusion:
    """Build a fusion from a config of tinyBIG's: what its `to_config()` gives, or what its YAML and JSON files hold.

    `function_class` is a name of this module, alone or with the path that tinyBIG has it at. Nothing is imported
    because of text in it. What a fusion and its functions hold beside their options comes along: weights of layers
    among the functions, the random matrices of an adaptation.

    Args:
        config: a mapping, or JSON text; of a YAML file, what `yaml.safe_load` returns.

    Raises:
        FusionError: it names something unknown, or has lost what the fusion computes: tinyBIG writes a function without
            its name, and hooks are no part of a config.
    """
    if isinstance(config, str):
        config = parse(config)
    path, parameters = _parts(config, "a fusion's config")
    prefix, _, name = path.rpartition(".")
    if name not in _classes() or not (prefix in ("", __name__) or prefix.split(".")[0] == "tinybig"):
        raise FusionError(f"unknown fusion {path!r}; tinyBIG's are {', '.join(sorted(_classes()))}.")
    cls = _classes()[name]
    if not _is_dump(parameters):
        return cls(**parameters)
    modules = dict(parameters["_modules"])
    fabrication = modules.pop("parameter_fabrication", None)
    _refuse_loss(name, {**parameters, "_modules": modules})
    result = cls(**_own_options(cls, parameters))
    _refuse_changed(result, parameters)
    for buffer in ("a", "b"):
        matrix = getattr(fabrication, buffer.upper(), None)
        if matrix is not None:
            setattr(result, buffer, matrix.detach().clone())
    return result


def _parts(config: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Return the class and the parameters of a config; `device` is a third key that tinyBIG writes into it."""
    keys = {"function_class", "function_parameters", "device"}
    if isinstance(config, Mapping) and set(config) <= keys:
        path, parameters = config.get("function_class"), config.get("function_parameters") or {}
        if isinstance(path, str) and isinstance(parameters, Mapping):
            return path, dict(parameters)
    content = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
    raise FusionError(
        f"{what} has the keys function_class and function_parameters: a name and a mapping; got {content}."
    )


def _is_dump(parameters: Mapping[str, Any]) -> bool:
    """Whether tinyBIG's `to_config` wrote the parameters: all attributes that a module has."""
    return "training" in parameters and "_modules" in parameters


def _refuse_loss(name: str, parameters: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> None:
    """Refuse what a module held and a config cannot give back."""
    for key, value in parameters.items():
        is_state = key.endswith("hooks") or key in ("_modules", "_parameters", "_buffers")
        if is_state and value and key not in ignore:
            raise FusionError(
                f"{name}: its config holds {key.strip('_')} {list(value)}, which no fusion is built from."
            )


def _own_options(cls: type[Fusion], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of tinyBIG's attributes that are options of the class."""
    options = {key: value for key, value in parameters.items() if key in cls.options()}
    metric = options.get("metric")
    if str(getattr(metric, "__module__", "")).partition(".")[0] == "tinybig":
        name = str(getattr(metric, "__name__", "")).removeprefix("batch_")
        options["metric"] = name if f"{name}_fusion" in _METRICS else metric
    return options


def _refuse_changed(result: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse a metric or weights that were put in the place of the class's own."""
    metric, weights = parameters.get("metric"), parameters.get("weights")
    name = result.get_name()
    if metric is not None and "metric" not in result.options() and metric.__name__ != result.metric.__name__:
        raise FusionError(f"{name}: its config has the metric {metric.__name__}; take metric_fusion for it.")
    if weights is not None and "weights" not in result.options() and not torch.allclose(weights.cpu(), result.weights):
        raise FusionError(
            f"{name}: its config has weights {weights.tolist()}; take weighted_summation_fusion for them."
        )


def _functions(functions: Any, configs: Any) -> tuple[Any, Any]:
    """Return functions in the place of configs that tinyBIG has written, or written into."""
    if functions is not None or configs is None:
        return functions, configs
    return [_function(config) for config in (configs if isinstance(configs, (list, tuple)) else [configs])], None


def _function(config: Any) -> Callable[[Tensor], Tensor]:
    path, parameters = _parts(config, "a function's config")
    prefix, _, name = path.rpartition(".")
    if prefix == "builtins":
        raise FusionError(
            f"a config of tinyBIG's has {path!r} for a function whose name it did not keep; "
            "give the function itself, as preprocess_functions or postprocess_functions."
        )
    path = f"torch.nn.{name}" if prefix.startswith("torch.nn.modules.") else path
    if _is_dump(parameters):
        return _module(path, callables.lookup(path), parameters)
    (function_module,) = callables.resolve({"function_class": path, "function_parameters": parameters})
    return function_module


def _module(path: str, cls: Any, parameters: Mapping[str, Any]) -> torch.nn.Module:
    """Build a layer from all its attributes, with its weights."""
    _refuse_loss(path, parameters, ignore=("_parameters", "_buffers"))
    names = inspect.signature(cls).parameters
    options = {key: value for key, value in parameters.items() if key in names}
    if "bias" in names:
        options["bias"] = parameters["_parameters"].get("bias") is not None
    module: torch.nn.Module = cls(**options)
    for kind in ("_parameters", "_buffers"):
        own, tensors = getattr(module, kind), parameters[kind]
        if {key: value is None for key, value in own.items()} != {key: value is None for key, value in tensors.items()}:
            raise FusionError(f"{path}: its config holds {list(tensors)}, where such a layer has {list(own)}.")
        for key, value in tensors.items():
            if value is not None:
                copy = value.detach().clone()
                own[key] = torch.nn.Parameter(copy, value.requires_grad) if kind == "_parameters" else copy
    return module


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name not in _classes():
        raise AttributeError(f"module {__name__!r} has no {name!r}; it has {', '.join(__dir__())}")
    return _classes()[name]


def __dir__() -> list[str]:
    return sorted([*_classes(), *_OWN])
