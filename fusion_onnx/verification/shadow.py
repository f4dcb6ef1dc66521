"""What rounding may do to each entry of a module's outputs: every operator run again in float64, errors put in.

The module runs once in its own dtypes, and beside each of its floating values go several in float64: one exact; in the
others every operator's result is multiplied by 1 ± u, u the unit roundoff of the dtype that the module computes in, and
so are the terms where it sums. How far these part from the exact one says what rounding may do to an entry, and to
that entry alone: a small column beside a large one keeps its own measure. A cast to a lower precision is not made in
float64, and its roundoff counts.

Decisions are the module's: what compares, rounds, selects or draws gives the shadows what it gave the module, so that a
step is no error. Shadows that are `free` decide for themselves: where these part, a model may too. Which of equal
entries is ranked first is theirs to decide as well.
"""

import functools
import random
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from fusion_onnx.contract.rounding import Arithmetic
from fusion_onnx.verification.operator_mode import OperatorMode

aten = torch.ops.aten

_STEPS = "round floor ceil trunc sign sgn heaviside floor_divide hardshrink threshold"
_EXACT = """
    abs amax amin as_strided cat clamp clamp_max clamp_min clone constant_pad_nd copy embedding expand_copy flip gather
    hardtanh index index_select lift_fresh masked_fill masked_scatter masked_select max max_pool2d_with_indices
    max_pool3d_with_indices maximum min minimum nan_to_num neg pixel_shuffle pixel_unshuffle relu repeat
    repeat_interleave roll scatter select_scatter slice_scatter sort stack topk unfold where _unsafe_view fill zero
    zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty tril triu
"""
# what is left of a sum with a part of the operand's size, or of 1: near 0 it is as far off as that part
_OF_OPERAND = "gelu silu mish hardswish softplus"
_OF_ONE = "sigmoid log1p expm1 elu celu selu hardsigmoid logit log_sigmoid_forward logaddexp"
_PRODUCTS = "mm addmm bmm baddbmm addbmm addmv mv dot vdot linear"

_BY = {
    kind: {getattr(aten, name + suffix, None) for name in names.split() for suffix in ("", "_")} - {None}
    for kind, names in {
        "step": _STEPS,
        "exact": _EXACT,
        "operand": _OF_OPERAND,
        "one": _OF_ONE,
        "product": _PRODUCTS,
        "remainder": "fmod remainder frac",
        "convolution": "convolution _convolution",
        "ranking": "sort topk",
        "whole": "round floor ceil trunc sign sgn heaviside floor_divide",
    }.items()
}
LARGER = 2.0**8
"""float64 has nothing finer beside it: in a module that gives it, the errors put in are larger by this."""
_SIGNS = 1 << 16
_MOST = 10.0


class _Operator:
    """What an operator is, for its shadows."""

    def __init__(self, func: Any) -> None:
        packet, schema = func.overloadpacket, func._schema
        self.kinds = {kind for kind, packets in _BY.items() if packet in packets}
        if packet in (aten.div, aten.div_) and "mode" in func._overloadname:
            self.kinds.add("step")
        written = [(i, a) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        self.written = [(i, a.name) for i, a in written]
        view = not written and any(r.alias_info is not None for r in schema.returns)
        self.exact = view or "exact" in self.kinds
        self.sums = not self.exact and torch.Tag.pointwise not in func.tags
        self.draws = torch.Tag.nondeterministic_seeded in func.tags

    def writes(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the arguments that it writes into."""
        arguments = [args[i] if i < len(args) else kwargs.get(name) for i, name in self.written]
        return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]

    def summed(self, leaves: Sequence[Any]) -> int | None:
        """Return which argument holds the terms of a sum, each of them rounded once: the first factor of a product."""
        places = [i for i, leaf in enumerate(leaves) if _rounds(leaf)] if self.sums else []
        if not places:
            return None
        return places[-2] if "product" in self.kinds and len(places) > 1 else places[0]

    def terms(self, leaves: Sequence[Any], outputs: Sequence[Tensor]) -> float:
        """Return how much larger than one rounding that of a sum is: some 0.3 √K for K terms, 10 at most."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self.sums or not tensors or not outputs:
            return 1.0
        if "product" in self.kinds:
            count = tensors[-2].shape[-1] if len(tensors) > 1 and tensors[-2].ndim else 1
        elif "convolution" in self.kinds:
            count = tensors[1].numel() // max(tensors[1].shape[0], 1)
        else:
            count = max(t.numel() for t in tensors) // max(outputs[0].numel(), 1)
        return float(min(max(0.3 * count**0.5, 1.0), _MOST))


_operator = functools.cache(_Operator)


class Shadows(OperatorMode):
    """While it is entered, what runs is run again for an exact shadow, and for `count` with errors put in.

    shared: tensors that are read and hardly written, parameters above all: one copy of each serves all shadows. free:
    the shadows decide for themselves, and what is given is rounded too. larger: what unit roundoffs are multiplied by.
    underflow: smallest subnormals are put in too. ranked: whether entries were ranked, which equal ones
    may be in several orders.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        *,
        shared: Iterable[Tensor] = (),
        free: bool = False,
        larger: float = 1.0,
        underflow: bool = False,
    ) -> None:
        super().__init__()
        self.count, self.free, self.larger, self.underflow = count, free, larger, underflow
        self.ranked = False
        self._shadows: Any = WeakIdKeyDictionary()
        self._shared = {id(t) for t in shared}
        self._random = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        sizes = 0.25 + torch.rand(_SIGNS, generator=generator, dtype=torch.float64) / 2  # two of one size would cancel
        self._signs = sizes * (1 - 2 * torch.randint(2, (_SIGNS,), generator=generator))

    def __enter__(self) -> Self:
        self._onednn = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)  # its kernels for whole layers take no float64
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_mkldnn_enabled(self._onednn)

    def of(self, tensor: Tensor) -> list[Tensor]:
        """Return a tensor's shadows, the exact one first; made of the tensor itself where nothing was tracked."""
        shadows: list[Tensor] | None = self._shadows.get(tensor)
        if shadows is None:
            wide = _wide(tensor)
            shadows = [wide] * (self.count + 1)
            if self.free and _rounds(tensor):
                shadows[1:] = [self._off(wide, tensor.dtype) for _ in range(self.count)]
            if id(tensor) not in self._shared:
                shadows = [s.clone() for s in shadows]
            self._shadows[tensor] = shadows
        return shadows

    def spread(self, tensor: Tensor) -> Tensor:
        """Return how far a tensor's shadows part from the exact one at most, entry by entry."""
        exact, *others = self.of(tensor)
        apart = [(s - exact).abs() if s.shape == exact.shape else torch.full_like(exact, torch.nan) for s in others]
        largest: Tensor = torch.stack(apart).amax(0) / self.larger
        return largest

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator, and again for every shadow."""
        operator = _operator(func)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        written = operator.writes(args, kwargs)
        if not any(self._follows(leaf) for leaf in leaves):
            for tensor in written:
                self._shadows.pop(tensor, None)
            return func(*args, **kwargs)
        for tensor in written:  # each shadow is written into by itself
            if id(tensor) in self._shared:
                self._shadows[tensor] = [s.clone() for s in self.of(tensor)]
                self._shared.discard(id(tensor))
        shadows = [self.of(leaf) if self._follows(leaf) else None for leaf in leaves]
        state = torch.get_rng_state() if operator.draws else None
        result = func(*args, **kwargs)
        if state is not None and not torch.equal(state, torch.get_rng_state()):
            for tensor in written:
                self._shadows.pop(tensor, None)
            return result
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(self._follows(y) for y in outputs):
            terms, summed = operator.terms(leaves, outputs), operator.summed(leaves)
            whole = self.free and "whole" in operator.kinds
            exact = operator.exact or whole or (func.overloadpacket is aten._to_copy and _is_exact(leaves[0]))
            runs = []
            for i in range(self.count + 1):
                operands = [_lifted(leaf) if s is None else s[i] for leaf, s in zip(leaves, shadows, strict=True)]
                rounding = i > 0 and not exact
                if rounding and summed is not None and not written:
                    operands[summed] = self._off(operands[summed], leaves[summed].dtype, terms)
                ranks = self.free and i > 0 and "ranking" in operator.kinds
                self.ranked |= ranks
                run = functools.partial(self._ranked, func, i) if ranks else func
                runs.append(self._run(run, operator, operands, spec, outputs, terms if rounding else 0.0))
            for y, *each in zip(outputs, *runs, strict=True):
                if self._follows(y):
                    self._shadows[y] = each
        return result

    def _run(
        self, func: Any, operator: _Operator, operands: list[Any], spec: Any, outputs: list[Tensor], terms: float
    ) -> list[Tensor]:
        """Run an operator for one shadow; return its results, their own errors put in unless terms is 0."""
        first = next(leaf for leaf in operands if isinstance(leaf, Tensor))
        operand = first.clone() if operator.written and "operand" in operator.kinds else first
        args, kwargs = pytree.tree_unflatten(operands, spec)
        try:
            results = [leaf for leaf in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
        except (RuntimeError, NotImplementedError, TypeError, IndexError):  # there is no kernel for float64
            results = [_wide(y) for y in outputs]
        if len(results) != len(outputs):
            results = [_wide(y) for y in outputs]
        for y, r in zip(outputs, results, strict=True):
            if not _rounds(y) or r.shape != y.shape:
                continue
            if not self.free and "step" in operator.kinds:
                r.copy_(y)
            elif not self.free and "remainder" in operator.kinds:
                divisor = operands[1] if len(operands) > 1 else 1.0
                r.add_(((y - r) / divisor).round().nan_to_num_(0, 0, 0) * divisor)
            if terms:
                off = self._off(r, y.dtype, terms)
                if "one" in operator.kinds or "operand" in operator.kinds:
                    part = operand.abs() if "operand" in operator.kinds else torch.ones_like(r)
                    off = off + part * self._sign(r.shape) * self._u(y.dtype)
                r.copy_(off)
        return results

    def _ranked(self, func: Any, number: int, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Rank entries as topk or sort does, equal ones in one of the orders in which they may come.

        The first shadow has the first of them first, as ONNX Runtime has, the second the last; the others draw lots.
        """
        names = [argument.name for argument in func._schema.arguments][1:]
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        if not x.ndim or options.get("stable"):
            return func(x, *args, **kwargs)
        dim, count = options.get("dim", -1), options.get("k")
        order = torch.arange(x.shape[dim], device=x.device)
        if number == 2:
            order = order.flip(0)
        elif number > 2:
            order = order[torch.tensor(self._random.sample(range(len(order)), len(order)), dtype=torch.long)]
        descending = options.get("descending", False) if count is None else options.get("largest", True)
        values, places = x.index_select(dim, order).sort(dim=dim, descending=descending, stable=True)
        if count is not None:
            values, places = values.narrow(dim, 0, count), places.narrow(dim, 0, count)
        return values, order[places]

    def _follows(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and (self.free or _rounds(leaf))

    def _u(self, dtype: torch.dtype) -> float:
        return Arithmetic(_real(dtype)).u * self.larger

    def _sign(self, shape: Sequence[int]) -> Tensor:
        """Return as many signs: a stretch of those drawn once, over and over where that is too short."""
        count = 1
        for size in shape:
            count *= size
        first = self._random.randrange(_SIGNS)
        signs = self._signs.roll(-first) if count > _SIGNS - first else self._signs[first:]
        if count > _SIGNS:
            signs = signs.repeat(-(-count // _SIGNS))
        return signs[:count].view(tuple(shape))

    def _off(self, values: Tensor, dtype: torch.dtype, terms: float = 1.0) -> Tensor:
        """Return values times 1 ± u, u the unit roundoff of a dtype times `terms`."""
        sign = self._sign(values.shape).to(values.device)
        off: Tensor = values * (sign * (terms * self._u(dtype)) + 1)  # in this order an infinity stays one
        if self.underflow or dtype == torch.float16:
            off = off.add(sign, alpha=Arithmetic(_real(dtype)).eta * self.larger)
        return off


def _is_exact(value: Any) -> bool:
    """Return whether a cast to any floating type but float16 and bfloat16 keeps each number."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return False
    return value.dtype == torch.bool or not value.numel() or int(value.abs().max()) < 2**24


def _rounds(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128)
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _lifted(leaf: Any) -> Any:
    """Return a dtype that is asked for as float64, where it is one of floating-point numbers."""
    if not isinstance(leaf, torch.dtype):
        return leaf
    return torch.float64 if leaf.is_floating_point else torch.complex128 if leaf.is_complex else leaf
