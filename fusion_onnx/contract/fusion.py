"""`Fusion`: the base class of every strategy. A fusion merges k tensors into one, A = fusion(A1, ..., Ak).

What a strategy writes down is its maths, three times: `fuse` in PyTorch, `decompose` in ONNX operators, and `reference`
in NumPy, which the other two are held to. Everything else is done here, once for all strategies:

1. construction  unknown options are refused, the widths are checked, the options are recorded (`to_config`);
2. forward       inputs are checked, preprocessed, handed to the strategy's torch op, postprocessed;
3. the torch op  `torch.ops.fusion_onnx.<strategy>(xs, params, config)`, which autograd and torch.compile see through
                 and torch.export keeps as one node (torch_op.py);
4. precision     float16 and bfloat16 are computed in float32 and rounded once, as the exported graph does.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import checks, torch_op
from fusion_onnx.contract.base import HOOKS, FusionBase
from fusion_onnx.contract.case import Case
from fusion_onnx.contract.form import Form, forms_of, mark_of
from fusion_onnx.contract.function import function, not_given
from fusion_onnx.contract.options import is_plain_state, refuse_keyword
from fusion_onnx.contract.rounding import Arithmetic
from fusion_onnx.contract.torch_op import Signature
from fusion_onnx.errors import FusionError

Array = np.ndarray[Any, Any]
"""What a reference computes on: floating numbers, of float64 or of a wider type."""

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_RENAMED = {"exact": "selects_only", "_parameter_count": "parameter_count", "_factor_count": "factor_count"}


class Fusion(FusionBase):
    """The base class of every fusion: k tensors (..., n_i) in, one tensor (..., n) out.

    Write a strategy in one of two ways. With `fuse` and `decompose` it is exported as one named node with a body; with
    a `forward` of its own it is traced as ordinary operators. Either way `calculate_n` and `calculate_l` are given.
    Each option of a constructor is kept in an attribute of the same name; that is how `to_config` finds it. Tensors
    that belong to the options (fixed weights, random projections) are buffers, and reach `fuse` and `decompose` as
    further arguments after `w`, in the order they were registered.

    `pre_process` and `post_process` are hooks: overridden in a subclass or set on an instance, they are what runs and
    what is exported. A subclass that overrides `fuse` gives `decompose` anew, or is traced: its parent's `decompose`,
    `reference`, forms, bound and `selects_only`, `bitwise`, `entrywise` are those of another `fuse`. (`decompose =
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

    selects_only: ClassVar[bool] = False
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
    """What n follows from, in words, for tables."""
    rule_l: ClassVar[str] = "0"
    """What l follows from, likewise."""

    _op: ClassVar[Any] = None
    _fuse_as_written: ClassVar[Any] = None
    _decompose_as_written: ClassVar[Any] = None
    _config: str | None = None
    _buffer_names: tuple[str, ...] = ()
    _altered: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old in _RENAMED.keys() & cls.__dict__.keys():
            raise FusionError(f"{cls.__name__}.{old} is called {_RENAMED[old]} now.")
        if cls.__dict__.get("_alias_of") is None:
            cls._leave_out_what_another_fuse_has()
            cls._fuse_as_written, cls._decompose_as_written = cls.fuse, cls.decompose
            cls._op = torch_op.declare(cls.strategy(), cls._prototype_of) if cls.is_strategy() else None

    # --- what a strategy gives ------------------------------------------------------------------------------------

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

    def coefficients(self, k: int, w: Tensor | None, *buffers: Tensor) -> Tensor | None:
        """Return a (k,) of a strategy that is Σ a_i x_i, so that they can go into the layers before it; else None."""
        return None

    def error_bound(
        self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor
    ) -> Tensor | None:
        """Bound |computed - exact|, entry by entry, for a computation in that arithmetic, in any order it may choose.

        Everything comes in float64, and so does the bound, broadcast to the output's shape; infinite where the order
        decides whether it overflows. 0 where entries are only selected. None: no bound is stated, and the verifier
        measures.
        """
        return xs[0].new_zeros(()) if self.selects_only else None

    def reset_parameters(self, w: Tensor) -> None:
        """Fill `w` in place for the start of training: every entry of the effective matrix W has variance 1 / (3 D).

        That is what torch.nn.Linear starts from. Where an entry of W is a sum of R products of f factors, each factor
        is uniform with variance (1 / (3 D R))^(1/f); `factor_count` gives (f, R).
        """
        factors, inner = self.factor_count()
        variance = (1 / (3 * sum(self.dims or (1,)) * inner)) ** (1 / factors)
        bound = (3 * variance) ** 0.5
        with torch.no_grad():
            w.uniform_(-bound, bound)

    def factor_count(self) -> tuple[int, int]:
        """Return (f, R): an entry of the effective matrix is a sum of R products of f factors."""
        return 1, 1

    def parameter_count(self, xs: Sequence[Tensor]) -> int:
        """Return l at these inputs; a strategy whose l follows from k alone says so here, and needs no dims."""
        return self.calculate_l()

    # --- calling it -----------------------------------------------------------------------------------------------

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
            refuse_keyword(self, "forward", kwargs, ("x", "w", "device"))
        xs, w, buffers = self.operands(x, w)
        if self._config is None:
            y = self.evaluate(xs, w, buffers)
        else:
            y = self._op(xs, buffers if w is None else [*buffers, w], self._config)
        if not self.processes("post_process"):
            return y
        return checks.checked_output(self.name, "post_process", self.post_process(y))

    def operands(self, x: Sequence[Tensor], w: Tensor | None) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
        """Return what the maths gets: the inputs, checked and preprocessed, w (l,), and the buffers."""
        xs = self.check_inputs(x)
        if self.processes("pre_process"):
            xs = self._preprocess_all(xs)
        w = checks.checked_parameters(self.name, self.parameter_count(xs), w, xs[0])
        return xs, w, checks.checked_buffers(self.name, self.operand_buffers(), xs[0])

    def evaluate(self, xs: Sequence[Tensor], w: Tensor | None, buffers: Sequence[Tensor]) -> Tensor:
        """Compute `fuse` on operands, in the precision that is computed in; the result aliases no input."""
        dtype = xs[0].dtype
        if self.computes_in(dtype) != dtype:
            w32 = None if w is None else w.float()
            return self.fuse([x.float() for x in xs], w32, *(b.float() for b in buffers)).to(dtype)
        y = self.fuse(xs, w, *buffers)
        return y.clone() if any(y is x for x in xs) else y  # an operator's result never aliases its input

    def computes_in(self, dtype: torch.dtype) -> torch.dtype:
        """Return the precision in which inputs of a dtype are fused: float32 for float16 and bfloat16."""
        return torch.float32 if dtype in _LOW_PRECISION and not self.selects_only else dtype

    def operand_buffers(self) -> dict[str, Tensor]:
        """Return the constructor's buffers: one that is registered later is no part of the maths."""
        return {name: getattr(self, name) for name in self._buffer_names}

    def buffer_arrays(self) -> list[Array]:
        """Return the buffers in float64, in the order they were registered, for `reference`.

        What a dtype sees of them is in a copy: `copy.deepcopy(fusion).to(dtype).buffer_arrays()`.
        """
        return [b.detach().cpu().double().numpy() for b in self.operand_buffers().values()]

    # --- what it is for an exporter -------------------------------------------------------------------------------

    @property
    def signature(self) -> Signature:
        """How the fusion's torch op is called."""
        return Signature(self._op, self._config, self._buffer_names)  # not kept: an op cannot be pickled

    @classmethod
    def is_strategy(cls) -> bool:
        """Whether the class gives `fuse` and `decompose`, and so is exported as one node with a body."""
        written = cls.forward is Fusion.forward
        return cls.fuse is not Fusion.fuse and cls.decompose is not Fusion.decompose and written

    @classmethod
    def has_reference(cls) -> bool:
        """Whether the class gives `reference`."""
        return cls.reference is not Fusion.reference

    @classmethod
    def inherits_decompose(cls) -> bool:
        """Whether `fuse` was put into the class after `decompose` was written for another."""
        return cls.fuse is not cls._fuse_as_written and cls.decompose is cls._decompose_as_written

    def is_bare(self) -> bool:
        """Return whether a call computes what `fuse` gives for the inputs, and nothing before or after it."""
        written = "forward" not in self.__dict__ and type(self).forward is Fusion.forward
        hooks = self._forward_hooks or self._forward_pre_hooks
        processed = self.processes("pre_process") or self.processes("post_process")
        return self.is_strategy() and written and not hooks and not processed and not self._altered

    def in_form(self, name: str = "") -> "WrittenFusion":
        """Return the fusion in one of its forms, by default that of `decompose`.

        Raises FusionError where it has no such form.
        """
        forms = self.forms()
        form = forms.get(name or next(iter(forms)))
        if form is None:
            raise FusionError(f"{self.strategy()} has no form {name!r}; its forms are {', '.join(forms)}.")
        return WrittenFusion(
            self,
            form.name,
            getattr(self, form.method),
            getattr(self, form.bound),
            self.bitwise and form.bitwise,
            form.propagates_inf,
        )

    def as_written(self, forms: Mapping[str, str], node: str = "") -> "WrittenFusion":
        """Return the fusion in the form that a file says it has at a node, or at its only one."""
        name = forms.get(node) if node or len(forms) != 1 else next(iter(forms.values()))
        return self.in_form(name if name in self.forms() and self.is_strategy() else "")

    # --- options are fixed when a fusion is made --------------------------------------------------------------------

    def __delattr__(self, name: str) -> None:
        """Delete an attribute; raises AttributeError for an option."""
        if self._completed and name in self.options() and name not in self._buffer_names:
            raise AttributeError(f"{self.name}: {name} decides what {type(self).__name__} computes; it stays.")
        super().__delattr__(name)

    def _check_assignment(self, name: str, value: Any) -> None:
        """Refuse an option or a buffer of another shape; trace the fusion after what else its maths may read."""
        if type(self).fuse is Fusion.fuse:
            return
        if name in self._buffer_names:
            buffer = getattr(self, name)
            plain = isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter)
            if not plain or value.shape != buffer.shape:
                actual = list(value.shape) if isinstance(value, Tensor) else value
                raise AttributeError(
                    f"{self.name}: {name} is a buffer of shape {list(buffer.shape)}, and takes a tensor of that shape; "
                    f"got {type(value).__name__} {actual}."
                )
        elif name in self.options() and name not in ("name", "device"):
            raise AttributeError(
                f"{self.name}: {name} is fixed when the fusion is made; build another one: "
                f"{type(self).__name__}(..., {name}={value!r}), or fusion_onnx.from_config(config) where config is "
                f"fusion.to_config() with {name!r} changed in its 'function_parameters'."
            )
        elif name == "decompose" or mark_of(getattr(type(self), name, None)) is not None:
            raise AttributeError(f"{self.name}: {name} belongs to the class; subclass {type(self).__name__}.")
        elif self._decides(name):  # the torch op knows nothing of it: the fusion computes for itself, and is traced
            self.__dict__.update(_config=None, _altered=True)

    def _decides(self, name: str) -> bool:
        """Whether the maths may read an attribute: one that the class has, or plain state of the constructor's."""
        if name in ("forward", *HOOKS) or hasattr(torch.nn.Module, name) or hasattr(function, name):
            return False
        return hasattr(type(self), name) or (name in self.__dict__ and is_plain_state(name, self.__dict__[name]))

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
            elif mark_of(getattr(cls, name, None)) is not None:
                setattr(cls, name, None)

    # --- completing it --------------------------------------------------------------------------------------------

    def _default_name(self) -> str:
        return self.strategy() if self.is_strategy() else super()._default_name()

    def _complete(self) -> None:
        """Check what the finished constructor holds, and make the fusion known to its torch op."""
        super()._complete()
        self._buffer_names = tuple(name for name, buffer in self._buffers.items() if buffer is not None)
        if not self.is_strategy():
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
        self._altered = bool(methods - {"forward", *HOOKS})  # the constructor put something in a method's place
        if not self._altered:
            options = self._option_values(without={*_BASE_OPTIONS, *self._buffers})
            options = {"dims": self.get_dims(), "require_parameters": self.require_parameters, **options}
            self._config = torch_op.config_of(self.strategy(), options, self._buffer_names)
        torch_op.register_prototype(self, self._without_tensors)

    def _trains(self) -> bool:
        try:
            return self.calculate_l() > 0
        except (FusionError, NotImplementedError):  # l follows from dims, which are left out
            return True

    def _without_tensors(self) -> "Fusion":
        """Return a copy with the options, but no tensors and no functions."""
        copy = type(self).__new__(type(self))
        torch.nn.Module.__init__(copy)
        own = {"_parameters", "_buffers", "_modules", "_functions", "_completed"}
        copy.__dict__.update({k: v for k, v in self.__dict__.items() if k not in own})
        copy._functions = dict.fromkeys(HOOKS, ())
        return copy

    @classmethod
    def _prototype_of(cls, options: Mapping[str, Any], buffers: tuple[str, ...]) -> "Fusion":
        """Return a fusion with the options of a config, whose buffers the op's call brings."""
        fusion = cls(**options)
        fusion._buffer_names = buffers
        return fusion

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        torch_op.register_prototype(self, self._without_tensors)  # a copy, or one unpickled in a fresh process


@dataclass(frozen=True)
class WrittenFusion:
    """A fusion in one of its forms: what an exported file holds.

    decompose, error_bound: the methods that write the form, and bound its error. bitwise: whether it gives the bits of
    `fuse`. propagates_inf: whether an infinite entry has the same consequences as in `fuse`.
    """

    fusion: Fusion
    form: str
    decompose: Callable[..., Any]
    error_bound: Callable[..., Any]
    bitwise: bool
    propagates_inf: bool

    @property
    def is_default(self) -> bool:
        """Whether it is the form that `decompose` writes."""
        return self.form == next(iter(self.fusion.forms()))

    @property
    def method(self) -> str:
        """Return the name of the method that writes it, with its class."""
        return f"{type(self.fusion).__name__}.{self.fusion.forms()[self.form].method}"


_OF_FUSE = (
    *("decompose", "reference", "error_bound", "coefficients", "forms", "in_form"),
    *("selects_only", "bitwise", "entrywise"),
)
"""What describes one `fuse`, and is no other's."""
_BASE_OPTIONS = frozenset(FusionBase.options())
