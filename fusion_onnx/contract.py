"""The base-class contract: `Fusion` and `Case`; `function` comes from base.py, the torch op from torch_op.py.

A fusion merges k tensors into one, A = fusion(A1, ..., Ak). What a strategy writes down is its maths, three times:
`fuse` in PyTorch, `decompose` in ONNX operators, and `reference` in NumPy, which the other two are held to. Everything
else is done here, once for all strategies:

1. construction  unknown options are refused, the widths are checked, the options are recorded (`to_config`);
2. forward       inputs are checked, preprocessed, handed to the strategy's torch op, postprocessed;
3. the torch op  `torch.ops.fusion_onnx.<strategy>(xs, params, config)`, which autograd and torch.compile see through
                 and torch.export keeps as one node;
4. precision     float16 and bfloat16 are computed in float32 and rounded once, as the exported graph does.
"""

import difflib
import functools
import inspect
import json
import operator
import re
import types
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from fusion_onnx import functions as _functions
from fusion_onnx import torch_op
from fusion_onnx.arithmetic import Arithmetic
from fusion_onnx.base import function, not_given
from fusion_onnx.errors import FusionError
from fusion_onnx.forms import Form, form, forms_of
from fusion_onnx.functions import FunctionList

__all__ = ["Case", "Form", "Fusion", "FusionError", "form", "function"]

Array = np.ndarray[Any, Any]
"""What a reference computes on: floating numbers, of float64 or of a wider type."""

_LOW_PRECISION = (torch.float16, torch.bfloat16)


class _OptionError(FusionError, TypeError):
    """An argument the constructor does not know."""


class _IndexError(FusionError, IndexError):
    """`get_dim` out of bounds: existing callers catch ValueError or IndexError."""


class _AbstractError(NotImplementedError, TypeError):
    """The base class itself was instantiated."""


class Case:
    """One setting that a strategy is tested, measured and documented at: the input widths and the options.

    >>> Case(dims=(4, 6, 2), n=5, r=2)
    Case(dims=(4, 6, 2), n=5, r=2)
    """

    def __init__(self, dims: Sequence[int], **options: Any) -> None:
        self.dims = tuple(dims)
        self.options = options

    def __repr__(self) -> str:
        return f"Case(dims={self.dims}" + "".join(f", {key}={value!r}" for key, value in self.options.items()) + ")"

    def create(self, strategy: Callable[..., "Fusion"], **options: Any) -> "Fusion":
        """Return the strategy's fusion at this case; `options` override the case's own."""
        return strategy(dims=self.dims, **{**self.options, **options})


class _Contract(ABCMeta):
    """Checks a fusion's options before its constructor runs, and records them after, so that no subclass has to.

    An ABCMeta, so that a fusion may inherit from an abstract class too.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__ == __name__ and cls.__name__ == "Fusion":
            raise _AbstractError(
                "Fusion is the base class. Subclass it, or take a strategy: fusion_onnx.create('sum', dims=[4, 4])."
            )
        known = cls.options()  # type: ignore[attr-defined]
        for key in kwargs:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise _OptionError(f"{cls.__name__} has no option {key!r}.{hint} Its options are {', '.join(known)}.")
        fusion = super().__call__(*args, **kwargs)
        fusion._settle()
        fusion._settled = True
        return fusion


class Fusion(torch.nn.Module, function, metaclass=_Contract):
    """The base class of every fusion: k tensors (..., n_i) in, one tensor (..., n) out.

    Write a strategy in one of two ways. With `fuse` and `decompose` it is exported as one named node with a body; with
    a `forward` of its own it is traced as ordinary operators. Either way `calculate_n` and `calculate_l` are given.
    Each option of a constructor is kept in an attribute of the same name; that is how `to_config` finds it. Tensors
    that belong to the options (fixed weights, random projections) are buffers, and reach `fuse` and `decompose` as
    further arguments after `w`, in the order they were registered.

    `pre_process` and `post_process` are hooks: overridden in a subclass or set on an instance, they are what runs and
    what is exported. A subclass that overrides `fuse` gives `decompose` anew, or is traced: its parent's `decompose`,
    `reference`, forms, bound and `exact`, `bitwise`, `entrywise` are those of another `fuse`. (`decompose =
    Parent.decompose` in the class vouches for it.) Options are fixed when a fusion is made.

    Args:
        dims: the last dimension of each input; may be left out where `needs_dims` is False.
        name: the operation's name; a strategy's own name where it is left out.
        require_parameters: whether the operation needs trainable parameters `w`.
        preprocess_functions: applied to the inputs: a callable, a module, a name of torch.nn.functional, or a list.
        postprocess_functions: applied to the output, likewise.
        preprocess_function_configs: a config, or a list of configs, to build the preprocess functions from.
        postprocess_function_configs: the same for the postprocess functions.
        device: where buffers are made. The inputs decide where the fusion computes.

    Raises:
        FusionError: (a ValueError) for an unknown option or dims that the strategy's rule refuses.
    """

    needs_dims: ClassVar[bool] = False
    """Whether the strategy's shapes follow from the input widths, so that `dims` cannot be left out."""
    equal_dims: ClassVar[bool] = False
    """Whether all inputs have one shape; otherwise they agree on all axes but the last."""
    exact: ClassVar[bool] = False
    """Whether the output's entries are input entries (selection, concatenation): no arithmetic, nothing to round."""
    bitwise: ClassVar[bool] = False
    """Whether `fuse` and `decompose` fix one order of operations, so that IEEE arithmetic gives both the same bits."""
    entrywise: ClassVar[bool] = False
    """Whether an entry of the output depends on the inputs' entries at its own place alone, beside w: so a session may
    compute a large batch in blocks of rows that stay in the cache."""
    tinybig: ClassVar[tuple[str, ...]] = ()
    """The names that the tinyBIG library has for this strategy."""
    tinybig_defaults: ClassVar[Mapping[str, Any]] = {}
    """Options under which the strategy gives tinyBIG's numbers for tinyBIG's weights."""
    cases: ClassVar[tuple[Case, ...]] = ()
    bench_options: ClassVar[Mapping[str, Any]] = {}
    """Options that `fusion-onnx bench` measures the strategy at, beside dims and n."""
    formula: ClassVar[str] = ""
    """One line of maths, for tables."""
    rule_n: ClassVar[str] = ""
    rule_l: ClassVar[str] = "0"

    form: str | None = None
    """Which of its forms `in_form` has fixed; None for the one that `decompose` writes."""
    infinities: bool = True
    """Whether that form gives Inf and NaN for infinite entries where eager execution does."""

    _op: ClassVar[Any] = None
    _alias_of: ClassVar[type["Fusion"] | None] = None
    _fuse_as_written: ClassVar[Any] = None
    _decompose_as_written: ClassVar[Any] = None
    _settled: bool = False
    _altered: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("_alias_of") is None:
            cls._leave_out_what_another_fuse_has()
            cls._fuse_as_written, cls._decompose_as_written = cls.fuse, cls.decompose
            cls._op = torch_op.declare(cls) if cls.is_strategy() else None
        for name in ("calculate_n", "calculate_l"):
            method = inspect.getattr_static(cls, name)
            if isinstance(method, types.FunctionType) and not _takes_any(method):
                setattr(cls, name, _taking_any(method))

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
            raise _OptionError(
                f"{type(self).__name__} was given {surplus}, which it does not know; "
                f"its options are {', '.join(self.options())}."
            )
        torch.nn.Module.__init__(self)
        function.__init__(self, name, device)
        if name == "base_fusion" and self.is_strategy():
            self.name = self.strategy()
        self.dims = _checked_dims(dims)
        if self.dims is None and self.needs_dims:
            raise FusionError(f"{self.strategy()} needs the widths of its inputs: give dims=[n_1, ..., n_k].")
        self.require_parameters = bool(require_parameters)
        self._functions: dict[str, tuple[Any, ...]] = {"pre_process": (), "post_process": ()}
        self._set_functions(
            pre_process=_given_once("preprocess", preprocess_functions, preprocess_function_configs),
            post_process=_given_once("postprocess", postprocess_functions, postprocess_function_configs),
        )

    # --- what a strategy gives ------------------------------------------------------------------------------------

    def calculate_n(self, dims: Sequence[int] | None = None, *args: Any, **kwargs: Any) -> int:
        """Return n, the output's last dimension, for the given or the fusion's own input widths.

        A subclass writes it without `*args, **kwargs`. What callers give beyond its parameters is taken all the same:
        by position without effect, as `calculate_l(dims)`; a keyword that it does not have is a FusionError.
        """
        not_given(self, "calculate_n")

    def calculate_l(self, *args: Any, **kwargs: Any) -> int:
        """Return l, the number of trainable parameters; written and called as `calculate_n` is."""
        not_given(self, "calculate_l")

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        """Compute the output from checked inputs (..., n_i) and flat parameters w (l,), in PyTorch."""
        not_given(self, "fuse")

    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        """Write the same maths as ONNX operators: `op.MatMul(x, y)`; `op.rank` is the inputs' rank.

        Further methods that are marked with `@form("name")` are other exact ways to write it.
        """
        not_given(self, "decompose")

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        """Compute the output once more in NumPy, from the formula and not from `fuse`: what all else is held to.

        Optional; a class has one where `cls.has_reference()`. It is written as the formula reads, by other means than
        `fuse`: stacked and reduced, sorted, or with the whole matrix. Options and buffers are the fusion's own, the
        latter by `buffer_arrays`. Pre- and postprocess functions are left out.

        Args:
            xs: k arrays (..., n_i) of one dtype, float64 or wider.
            w: the parameters (l,) in the same dtype; None where l = 0.

        Returns:
            The output (..., n) in the arrays' dtype: float64 in, float64 out; np.longdouble in, np.longdouble out.
            NaN and infinities stand where the formula has them.

        Raises:
            NotImplementedError: the class gives none.
        """
        not_given(self, "reference")

    def forms(self) -> dict[str, Form]:
        """Return the forms in which the fusion can be written in ONNX, by name; the one of `decompose` is the first."""
        return forms_of(type(self))

    def in_form(self, name: str) -> "Fusion":
        """Return the fusion with another of its forms for `decompose`: the same options, parameters and results.

        Raises FusionError where it has no such form.
        """
        known = self.forms()
        if name not in known:
            raise FusionError(f"{self.strategy()} has no form {name!r}; its forms are {', '.join(known)}.")
        chosen = known[name]
        if name == next(iter(known)):
            return self
        other = type(self).__new__(type(self))  # not copy.copy, which torch refuses where something is parametrized
        written: dict[str, Any] = {"decompose": self._form_method(chosen.method), "form": name}
        written["error_bound"] = self._form_method(chosen.bound)
        other.__dict__.update(
            {**self.__dict__, **written}, bitwise=self.bitwise and chosen.bitwise, infinities=chosen.infinities
        )
        return other

    def as_written(self, forms: Mapping[str, str], node: str = "") -> "Fusion":
        """Return the fusion in the form that a file says it has at a node, or at its only one."""
        name = forms.get(node) if node or len(forms) != 1 else next(iter(forms.values()))
        return self.in_form(name) if name in self.forms() and self.is_strategy() else self

    def _form_method(self, name: str) -> Any:
        return getattr(self, name)

    def coefficients(self, k: int, w: Tensor | None, *buffers: Tensor) -> Tensor | None:
        """Return a (k,) of a strategy that is Σ a_i x_i, so that they can go into the layers before it; else None."""
        return None

    def error_bound(
        self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor
    ) -> Tensor | None:
        """Bound |computed - exact|, entry by entry, for a computation in that arithmetic, in any order it may choose.

        Everything comes in float64, and so does the bound, broadcast to the output's shape; infinite where the order
        decides whether it overflows. 0 for exact strategies. None: no bound is stated, and the verifier measures.
        """
        return xs[0].new_zeros(()) if self.exact else None

    # --- the contract's methods -----------------------------------------------------------------------------------

    def forward(
        self, x: Sequence[Tensor], w: Tensor | None = None, device: str = "cpu", *args: Any, **kwargs: Any
    ) -> Tensor:
        """Fuse k tensors (..., n_i) into one (..., n).

        Args:
            x: list or tuple of k floating tensors of one dtype and device; leading axes agree, and are batch axes.
            w: the trainable parameters, shape (l,) or (1, l); None where l = 0.
            device: kept for the contract's sake; the inputs decide.
            *args: without effect.
            **kwargs: there are none; a keyword that is not listed here is a FusionError.

        Raises:
            FusionError: the inputs or `w` break a rule; the message names the rule, the value and the fix.
            NotImplementedError: the class gives neither `fuse` nor `forward`.
        """
        if type(self).fuse is Fusion.fuse:
            not_given(self, "forward")
        if kwargs:
            _refuse(self, "forward", kwargs, ("x", "w", "device"))
        xs, w, buffers = self._operands(x, w)
        if self._op is None or self._record is None:
            y = self._evaluate(xs, w, buffers)
        else:
            y = self._op(xs, buffers if w is None else [*buffers, w], self._record)
        return self._postprocess(y) if self.processes("post_process") else y

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

    def pre_process(self, x: Tensor, device: str = "cpu", *args: Any, **kwargs: Any) -> Tensor:
        """Apply the preprocess functions to a tensor, in order; a hook, which a subclass or an instance overrides.

        x: the inputs stacked along a new first axis where their shapes agree, else one after the other.
        """
        if kwargs:
            _refuse(self, "pre_process", kwargs, ("x", "device"))
        return self.func_x(x, self._checked_functions("pre_process"), device)

    def post_process(self, x: Tensor, device: str = "cpu", *args: Any, **kwargs: Any) -> Tensor:
        """Apply the postprocess functions to the output, in order; a hook, as `pre_process` is."""
        if kwargs:
            _refuse(self, "post_process", kwargs, ("x", "device"))
        return self.func_x(x, self._checked_functions("post_process"), device)

    def to_config(self) -> dict[str, Any]:
        """Return the fusion as plain data, `{"function_class": ..., "function_parameters": {...}}`.

        `fusion_onnx.from_config` gives back a fusion with the same outputs for the same `w`. Trained state of modules
        among the pre- and postprocess functions travels in the `state_dict`, as for any module.
        """
        parameters = self._option_values()
        for key in ("preprocess", "postprocess"):
            parameters[f"{key}_function_configs"] = _functions.to_configs(parameters.pop(f"{key}_functions"))
        kept = {key: value for key, value in parameters.items() if value is not None}
        return {"function_class": self.strategy(), "function_parameters": kept}

    def buffer_arrays(self) -> list[Array]:
        """Return the buffers in float64, in the order they were registered, for `reference`.

        What a dtype sees of them is in a copy: `copy.deepcopy(fusion).to(dtype).buffer_arrays()`.
        """
        return [b.detach().cpu().double().numpy() for b in self._operand_buffers().values()]

    # --- pre- and postprocess functions ---------------------------------------------------------------------------

    @property
    def preprocess_functions(self) -> FunctionList:
        """The functions applied to the inputs, as a list: modules that are put into it, or assigned, are registered."""
        return FunctionList(lambda: self._applied("pre_process"), lambda new: self._set_functions(pre_process=new))

    @preprocess_functions.setter
    def preprocess_functions(self, given: Any) -> None:
        self._set_functions(pre_process=_functions.resolve(given))

    @property
    def postprocess_functions(self) -> FunctionList:
        """The functions applied to the output, likewise."""
        return FunctionList(lambda: self._applied("post_process"), lambda new: self._set_functions(post_process=new))

    @postprocess_functions.setter
    def postprocess_functions(self, given: Any) -> None:
        self._set_functions(post_process=_functions.resolve(given))

    def processes(self, hook: str) -> bool:
        """Return whether `pre_process`, or `post_process`, does anything: it has functions, or is overridden."""
        return bool(self._functions[hook]) or hook in self.__dict__ or getattr(type(self), hook) is not _WRITTEN[hook]

    def is_bare(self) -> bool:
        """Return whether a call computes what `fuse` gives for the inputs, and nothing before or after it."""
        written = "forward" not in self.__dict__ and type(self).forward is _WRITTEN["forward"]
        hooks = self._forward_hooks or self._forward_pre_hooks
        processed = self.processes("pre_process") or self.processes("post_process")
        return self.is_strategy() and written and not hooks and not processed and not self._altered

    def _applied(self, hook: str) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return a hook's functions; modules are those in `process_modules`, where a tool may replace them."""
        return tuple(self.process_modules[f] if isinstance(f, int) else f for f in self._functions[hook])

    def _set_functions(self, **given: Sequence[Callable[[Tensor], Tensor]]) -> None:
        """Keep the functions of one hook or both, and register modules: .to(), eval(), state_dict() reach them."""
        functions = {hook: self._applied(hook) for hook in self._functions} | given
        modules: list[torch.nn.Module] = []
        kept: dict[str, tuple[Any, ...]] = {}
        for hook, each in functions.items():
            kept[hook] = ()
            for f in each:
                if isinstance(f, torch.nn.Module):
                    modules.append(f)
                kept[hook] += (len(modules) - 1 if isinstance(f, torch.nn.Module) else f,)
        for f in (f for each in functions.values() for f in each):  # behind the others, whose names stay
            owner = _functions.module_of(f)
            if owner is not None and not any(owner is module for module in modules):
                modules.append(owner)
        self._functions = kept
        if modules:
            self.process_modules = torch.nn.ModuleList(modules)
        else:
            self._modules.pop("process_modules", None)

    def _checked_functions(self, hook: str) -> tuple[Callable[[Tensor], Tensor], ...]:
        functions = self._applied(hook)
        if not self.training and not torch.compiler.is_compiling():
            for f in functions:
                for module in _functions.trained_unseen(f, self):
                    raise FusionError(
                        f"{self.name}: the function {_functions.describe(f)} holds a {type(module).__name__} in "
                        "training mode, which eval() does not reach there. Give the module itself as the function, or "
                        "one that holds it."
                    )
        return functions

    # --- what is assigned later -----------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; raises AttributeError for an option, which is fixed when a fusion is made."""
        if name in _PROCESS:
            object.__setattr__(self, name, value)  # torch would register a module under this name
            return
        if isinstance(value, torch.nn.Module) and inspect.isfunction(getattr(type(self), name, None)):
            kind = name.replace("_", "") + "_functions"  # torch would register it, and go on calling the method
            way = f"give the module as {kind}" if name in _HOOKS else "write a method that calls the module"
            raise AttributeError(f"{type(self).__name__}.{name} is a method, and no module takes its place; {way}.")
        if self._settled and type(self).fuse is not Fusion.fuse:
            self._check_assignment(name, value)
        if name == "device":
            value = str(value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute; raises AttributeError for an option."""
        if self._settled and name in self.options() and name not in self._buffer_names:
            raise AttributeError(f"{self.name}: {name} decides what {type(self).__name__} computes; it stays.")
        super().__delattr__(name)

    def _check_assignment(self, name: str, value: Any) -> None:
        if name in self._buffer_names:
            held = getattr(self, name)
            plain = isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter)
            if not plain or value.shape != held.shape:
                got = list(value.shape) if isinstance(value, Tensor) else value
                raise AttributeError(
                    f"{self.name}: {name} is a buffer of shape {list(held.shape)}, and takes a tensor of that shape; "
                    f"got {type(value).__name__} {got}."
                )
        elif name in self.options() and name not in ("name", "device"):
            raise AttributeError(
                f"{self.name}: {name} is fixed when the fusion is made; build another one: "
                f"{type(self).__name__}(..., {name}={value!r}), or fusion_onnx.from_config(config) where config is "
                f"fusion.to_config() with {name!r} changed in its 'function_parameters'."
            )
        elif name == "decompose" or hasattr(getattr(type(self), name, None), "_fusion_onnx_form"):
            raise AttributeError(f"{self.name}: {name} belongs to the class; subclass {type(self).__name__}.")
        elif self._decides(name):  # the torch op knows nothing of it: the fusion computes for itself, and is traced
            self.__dict__.update(_record=None, _altered=True)

    def _decides(self, name: str) -> bool:
        """Whether the maths may read an attribute: one that the class has, or plain state of the constructor's."""
        if name in ("forward", *_HOOKS) or hasattr(torch.nn.Module, name) or hasattr(function, name):
            return False
        return hasattr(type(self), name) or (name in self.__dict__ and _is_plain_state(name, self.__dict__[name]))

    @classmethod
    def _leave_out_what_another_fuse_has(cls) -> None:
        """Drop what the class inherits from one with another `fuse`, which it describes: its body, forms, bound."""
        mro = cls.__mro__
        fuses = [base.fuse if issubclass(base, Fusion) else cls.fuse for base in mro]
        end = next((i for i, fuse in enumerate(fuses) if fuse not in (cls.fuse, Fusion.fuse)), len(mro))
        own = {name for base in mro[:end] for name in vars(base)}
        for name in {name for base in mro[end:] if base is not Fusion for name in vars(base)} - own:
            if name in _OF_FUSE:
                setattr(cls, name, vars(Fusion)[name])
            elif hasattr(getattr(cls, name, None), "_fusion_onnx_form"):
                setattr(cls, name, None)

    # --- names and options ----------------------------------------------------------------------------------------

    @classmethod
    def strategy(cls) -> str:
        """Return the strategy's name: the snake case of the class name, without its ending `Fusion`."""
        name = (cls.__dict__.get("_alias_of") or cls).__name__
        name = name.removesuffix("Fusion") or name
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

    @classmethod
    def is_strategy(cls) -> bool:
        """Whether the class gives `fuse` and `decompose`, and so is exported as one node with a body."""
        return cls.fuse is not Fusion.fuse and cls.decompose is not Fusion.decompose and cls.forward is Fusion.forward

    @classmethod
    def has_reference(cls) -> bool:
        """Whether the class gives `reference`."""
        return cls.reference is not Fusion.reference

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """Return the constructor's named parameters, the class's own before those of its bases."""
        found: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__:
            if issubclass(base, Fusion) and "__init__" in base.__dict__:
                for parameter in list(inspect.signature(base.__init__).parameters.values())[1:]:
                    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                        found.setdefault(parameter.name, parameter)
        return found

    def extra_repr(self) -> str:
        """Show the options that were given, in `print(model)`."""
        options = self.options()
        values = {**self.__dict__, **{key: tuple(getattr(self, key)) for key in _PROCESS}}
        shown = {k: v for k, v in values.items() if k in options and v != options[k].default and k != "name"}
        return ", ".join(f"{key}={_short(value)}" for key, value in shown.items() if value not in ((), None))

    def reset_parameters(self, w: Tensor) -> None:
        """Fill `w` in place for the start of training: every entry of the effective matrix W has variance 1 / (3 D).

        That is what torch.nn.Linear starts from. Where an entry of W is a sum of R products of f factors, each factor
        is uniform with variance (1 / (3 D R))^(1/f); `_factor_count` gives (f, R).
        """
        factors, inner = self._factor_count()
        variance = (1 / (3 * sum(self.dims or (1,)) * inner)) ** (1 / factors)
        bound = (3 * variance) ** 0.5
        with torch.no_grad():
            w.uniform_(-bound, bound)

    def _factor_count(self) -> tuple[int, int]:
        return 1, 1

    def _parameter_count(self, xs: Sequence[Tensor]) -> int:
        """Return l at these inputs; a strategy whose l follows from k alone says so here, and needs no dims."""
        return self.calculate_l()

    # --- checks: of structure only, never of a tensor's values, which would break export ---------------------------

    def check_inputs(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs as a list; raise FusionError where they break the contract."""
        if not isinstance(x, (list, tuple)):
            raise FusionError(f"{self.name}: the inputs are a list or tuple of tensors; got {type(x).__name__}.")
        if not x:
            raise FusionError(f"{self.name}: at least one input is needed; got an empty {type(x).__name__}.")
        for i, t in enumerate(x, 1):
            if not isinstance(t, Tensor):
                raise FusionError(f"{self.name}: input {i} is a {type(t).__name__}, not a tensor.")
            if not t.dtype.is_floating_point:
                raise FusionError(f"{self.name}: inputs are floating; input {i} is {t.dtype}. Convert it: x.float().")
            if t.ndim == 0:
                raise FusionError(f"{self.name}: inputs have at least one axis; input {i} is a scalar.")
        first = x[0]
        for i, t in enumerate(x[1:], 2):
            if t.dtype != first.dtype:
                raise FusionError(
                    f"{self.name}: inputs share one dtype; input 1 is {first.dtype}, input {i} is {t.dtype}. "
                    f"Convert it: x.to({first.dtype})."
                )
            if t.device != first.device:
                raise FusionError(
                    f"{self.name}: inputs share one device; input 1 is on {first.device}, input {i} on {t.device}. "
                    f"Move it: x.to({str(first.device)!r})."
                )
        self._check_shapes(x)
        return list(x)

    def _check_shapes(self, xs: Sequence[Tensor]) -> None:
        dims, first = self.dims, xs[0]
        if dims is not None:
            if len(xs) != len(dims):
                raise FusionError(f"{self.name}: dims={list(dims)} means {len(dims)} inputs; got {len(xs)}.")
            for i, (t, d) in enumerate(zip(xs, dims, strict=True), 1):
                if t.shape[-1] != d:
                    raise FusionError(
                        f"{self.name}: input {i} has last dimension {t.shape[-1]}, shape {list(t.shape)}, "
                        f"where dims={list(dims)} asks for {d}."
                    )
        own = 0 if self.equal_dims else 1  # how many trailing axes may differ
        for i, t in enumerate(xs[1:], 2):
            if t.ndim != first.ndim or any(a != b for a, b in zip(t.shape[: t.ndim - own], first.shape, strict=False)):
                rule = "one shape" if self.equal_dims else "all axes but the last"
                raise FusionError(
                    f"{self.name}: inputs share {rule}; input 1 is {list(first.shape)}, input {i} is {list(t.shape)}. "
                    "Inputs are never broadcast: expand them first."
                )

    def _operands(self, x: Sequence[Tensor], w: Tensor | None) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
        """Return what the maths gets: the inputs, checked and preprocessed, w (l,), and the buffers."""
        xs = self.check_inputs(x)
        if self.processes("pre_process"):
            xs = self._preprocess_all(xs)
        return xs, self._checked_w(w, xs), self._checked_buffers(xs[0])

    def _postprocess(self, y: Tensor) -> Tensor:
        processed = self.post_process(y)
        if not isinstance(processed, Tensor):
            raise FusionError(f"{self.name}: post_process returns a tensor; it returned {type(processed).__name__}.")
        return processed

    def _preprocess_all(self, xs: list[Tensor]) -> list[Tensor]:
        if all(t.shape == xs[0].shape for t in xs):
            stacked = torch.stack(xs)
            processed = self.pre_process(stacked)
            if not isinstance(processed, Tensor):
                raise FusionError(f"{self.name}: pre_process returns a tensor; it returned {type(processed).__name__}.")
            if processed.ndim < 2 or processed.shape[0] != len(xs):
                raise FusionError(
                    f"{self.name}: preprocess functions see inputs of one shape stacked along a new first axis, and "
                    f"keep it; {list(stacked.shape)} became {list(processed.shape)}. Let them work on the last axis."
                )
            xs = list(processed.unbind())
        else:
            xs = [self.pre_process(t.clone()) for t in xs]  # a function may work in place; stacking copied as well
        return self.check_inputs(xs)

    def _checked_w(self, w: Tensor | None, xs: Sequence[Tensor]) -> Tensor | None:
        length = self._parameter_count(xs)
        shape = None if w is None else tuple(w.shape)
        if length == 0:
            if w is not None and w.numel() > 0:
                raise FusionError(f"{self.name} has no trainable parameters (l = 0); got w of shape {shape}.")
            return None
        if w is None:
            raise FusionError(
                f"{self.name} needs its {length} parameters: call it with w of shape ({length},) or (1, {length}), "
                "or let fusion_onnx.FusionLayer(fusion) own them."
            )
        if shape not in ((length,), (1, length)):
            raise FusionError(f"{self.name}: w has shape ({length},) or (1, {length}); got {shape}.")
        if w.dtype != xs[0].dtype or w.device != xs[0].device:
            raise FusionError(
                f"{self.name}: w is {w.dtype} on {w.device}, the inputs {xs[0].dtype} on {xs[0].device}; "
                f"convert it: w.to(x)."
            )
        return w if w.ndim == 1 else w.reshape(-1)

    def _checked_buffers(self, like: Tensor) -> list[Tensor]:
        buffers = self._operand_buffers()
        for name, buffer in buffers.items():
            if buffer.device != like.device:
                raise FusionError(
                    f"{self.name}: {name} is on {buffer.device}, the inputs on {like.device}; "
                    f"move the fusion: fusion.to({str(like.device)!r})."
                )
        return [b.to(like.dtype) for b in buffers.values()]

    def _operand_buffers(self) -> dict[str, Tensor]:
        """Return the constructor's buffers: one that is registered later is no part of the maths."""
        return {name: getattr(self, name) for name in self._buffer_names}

    # --- the torch op ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Check what the finished constructor holds, and make the fusion known to its torch op."""
        if self.dims is not None and type(self).calculate_n is not Fusion.calculate_n:
            self.calculate_n(self.dims)
        self._buffer_names = tuple(name for name, buffer in self._buffers.items() if buffer is not None)
        if not self.is_strategy():
            self._record: str | None = None
            return
        state = [name for name, _ in self.named_parameters() if not name.startswith("process_modules.")]
        if state:
            raise FusionError(
                f"{type(self).__name__} keeps parameters {state} of its own; a strategy takes them through w, "
                "so that the exported function does. Count them in calculate_l, or give a forward instead of fuse."
            )
        if self.require_parameters and not self._trains():
            raise FusionError(
                f"{self.strategy()} has no parameters to train (l = 0); leave require_parameters=True out, or take a "
                "strategy that has, such as learned_weighted_sum."
            )
        methods = {name for name in self.__dict__ if inspect.isfunction(getattr(type(self), name, None))}
        self._altered = bool(methods - {*_WRITTEN})  # the constructor put something in a method's place
        self._record = None if self._altered else self._signature()
        self._publish()

    def _trains(self) -> bool:
        try:
            return self.calculate_l() > 0
        except (FusionError, NotImplementedError):  # l follows from dims, which are left out
            return True

    def _signature(self) -> str | None:
        """Return the options that decide the maths, as canonical JSON; None where one is not plain data."""
        values = self._option_values(without={*_BASE_OPTIONS, *self._buffers})
        values = {"dims": self.get_dims(), "require_parameters": self.require_parameters, **values}
        plain = {key: value for key, value in values.items() if value is not None}
        record: dict[str, Any] = {"function_class": self.strategy(), "function_parameters": plain}
        if self._buffer_names:  # an optional buffer is no part of the options, and its presence decides the maths
            record["buffers"] = self._buffer_names
        try:
            return json.dumps(record, sort_keys=True)
        except TypeError:
            return None

    def _publish(self) -> None:
        """Keep a stand-in with the options but no tensors, for the op to find by the fusion's record."""
        if self._record is None:
            return
        if torch_op.known(self._op, self._record):
            self._check_like(torch_op.stand_in(self._op, self._record))
        else:
            stand_in = type(self).__new__(type(self))
            torch.nn.Module.__init__(stand_in)
            held = {"_parameters", "_buffers", "_modules", "_functions", "_settled"}
            stand_in.__dict__.update({k: v for k, v in self.__dict__.items() if k not in held})
            stand_in._functions = {"pre_process": (), "post_process": ()}
            torch_op.publish(self._op, self._record, stand_in)

    def _check_like(self, other: "Fusion") -> None:
        """Refuse plain state that is no option: two fusions with equal options compute the same."""
        for key, value in self.__dict__.items():
            before = other.__dict__.get(key, value)
            if _is_plain_state(key, value) and _plain(before) != _plain(value):
                raise FusionError(
                    f"{type(self).__name__} keeps {key}={value!r}, which its options do not decide (before, it was "
                    f"{before!r}). Make {key} an option, or a buffer."
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._publish()  # a copy, or a fusion unpickled in a fresh process

    def _evaluate(self, xs: Sequence[Tensor], w: Tensor | None, buffers: Sequence[Tensor]) -> Tensor:
        dtype = xs[0].dtype
        if dtype in _LOW_PRECISION and not self.exact:
            w32 = None if w is None else w.float()
            return self.fuse([x.float() for x in xs], w32, *(b.float() for b in buffers)).to(dtype)
        y = self.fuse(xs, w, *buffers)
        return y.clone() if any(y is x for x in xs) else y  # an operator's result never aliases its input

    def _option_values(self, without: Iterable[str] = ()) -> dict[str, Any]:
        values = {}
        for key in self.options():
            if key in without or key in ("preprocess_function_configs", "postprocess_function_configs"):
                continue
            if not hasattr(self, key):
                raise FusionError(
                    f"{type(self).__name__}: option {key!r} is not kept. Assign self.{key} in the constructor, "
                    "so that to_config can write it."
                )
            values[key] = _plain(getattr(self, key))
        return values


_PROCESS = ("preprocess_functions", "postprocess_functions")
_HOOKS = ("pre_process", "post_process")
_WRITTEN = {name: vars(Fusion)[name] for name in ("forward", *_HOOKS)}
_OF_FUSE = (
    *("decompose", "reference", "error_bound", "coefficients", "forms", "_form_method"),
    *("exact", "bitwise", "entrywise"),
)
"""What describes one `fuse`, and is no other's."""
_BASE_OPTIONS = frozenset(Fusion.options())


def _checked_dims(dims: Any) -> tuple[int, ...] | None:
    if dims is None:
        return None
    if not isinstance(dims, (list, tuple)) or not dims:
        raise FusionError(f"dims is a list or tuple of at least one width; got {dims!r}.")
    widths = []
    for d in dims:
        width = whole(d)
        if width is None or width < 1:
            raise FusionError(f"dims are positive whole numbers; got {d!r} in {list(dims)!r}.")
        widths.append(width)
    return tuple(widths)


def whole(value: Any) -> int | None:
    """Return a whole number of any kind, NumPy's too, as an int; None for what is none, and for a bool."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def _takes_any(method: types.FunctionType) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(method, follow_wrapped=False).parameters.values()}
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _taking_any(method: Callable[..., int]) -> Callable[..., int]:
    """Return the method with the specification's `*args, **kwargs`: more by position is taken, a new keyword is not."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    count = len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
    known = tuple(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @functools.wraps(method)
    def taking_any(self: Fusion, *args: Any, **kwargs: Any) -> int:
        if kwargs and not open_ended and not kwargs.keys() <= set(known):
            _refuse(self, method.__name__, kwargs, known)
        return method(self, *args[:count], **kwargs)

    return taking_any


def _refuse(fusion: Fusion, method: str, given: Iterable[str], known: Sequence[str]) -> NoReturn:
    """Raise the error of a keyword that a method does not have."""
    key = next(key for key in given if key not in known)
    takes = f"its keywords are {', '.join(known)}" if known else "it has no keywords"
    raise _OptionError(f"{type(fusion).__name__}.{method} was given {key!r}, which it does not know; {takes}.")


def _given_once(kind: str, given: Any, configs: Any) -> tuple[Callable[[Tensor], Tensor], ...]:
    if given is not None and configs is not None:
        raise FusionError(f"give {kind}_functions or {kind}_function_configs, not both.")
    return _functions.resolve(given if configs is None else configs)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_plain_state(name: str, value: Any) -> bool:
    """Whether an attribute is such that the maths may depend on it: public and plain, and not the contract's own."""
    free = name.startswith("_") or name in ("name", "device", "training")
    return not free and isinstance(value, (bool, int, float, str, tuple, list))


def _short(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
