"""How far two correct results may be apart, entry by entry: E(eager) + E(model), each from its own arithmetic.

    E = e + u_s (|y| + e) + η_s

with e what the computation loses in the type it computes in, derived by the strategy (`Fusion.error_bound`) from the
actual inputs in float64, and the rest what the last rounding loses, to the type of the output, where that is another
one (u_s its unit roundoff, η_s its smallest subnormal). Where no strategy's bound holds, as for a whole network, what
eager execution loses against float64 is measured instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion_onnx.contract.fusion import WrittenFusion
from fusion_onnx.contract.rounding import Arithmetic
from fusion_onnx.verification.shadow import LARGER, Shadows

Array = npt.NDArray[np.float64]

FACTOR = 8
SHADOWS = 12
BITS = "0: the strategy fixes the order of operations, so eager and the CPU provider give the same bits"
DERIVED = "E(eager) + E(model): the strategy's own bound, entry by entry, in float64 for these inputs"
MEASURED = (
    f"{FACTOR} × what rounding in each operator does to the entry, in {SHADOWS} runs in float64 with errors put in "
    "(or eager's own distance from float64), + 4 (u |y| + η) (u, η: unit roundoff and smallest subnormal of the dtype)"
)
SAME_BITS = (torch.float16, torch.float32, torch.float64)
"""The dtypes in which eager execution and the CPU provider have the same arithmetic."""
UNMEASURED = (
    "256 u max |y| (u: unit roundoff of the output's dtype): the module cannot be run in float64, "
    "so what rounding does in it cannot be measured"
)


@dataclass(frozen=True)
class Tolerance:
    """What eager and the model may each be off from the exact result, entry by entry, in float64.

    exact: the result in float64; None where eager itself is float64, and nothing better is known. An infinite entry of
    reference or tested says that the order of operations decides there whether the result overflows. bits: nothing is
    allowed between the two, whatever each may be off from the exact result.
    """

    exact: Array | None
    reference: Array
    tested: Array
    rule: str
    bits: bool = False
    decisions: Array | None = None

    @property
    def allowed(self) -> Array:
        """E(eager) + E(model); 0 where the bits are to be the same."""
        with np.errstate(over="ignore"):  # infinite: undetermined
            total: Array = np.zeros_like(self.reference) if self.bits else self.reference + self.tested
        return total


def array(tensor: Any) -> Array:
    """Return a tensor's or array's values in float64."""
    tensor = torch.as_tensor(tensor).detach().cpu()
    values: Array = (tensor.double() if tensor.dtype != torch.bool else tensor.int().double()).numpy()
    return values


def dtype_name(value: Any) -> str:
    """Return a tensor's or an array's dtype by the name that both share, such as "float32"."""
    return str(value.dtype).removeprefix("torch.")


def unit(dtype: torch.dtype) -> float:
    """Return the unit roundoff of a dtype; 0 for whole numbers."""
    return Arithmetic(dtype).u if dtype.is_floating_point else 0.0


def derived(written: WrittenFusion, xs: Sequence[Tensor], w: Tensor | None) -> Tolerance | None:
    """Return the tolerance that the strategy's bound gives for a form at these inputs; None where it states none.

    The fusion's pre- and postprocess functions are left out: xs is what the strategy itself sees.
    """
    fusion, storage = written.fusion, xs[0].dtype
    arithmetic = Arithmetic(fusion.computes_in(storage))
    wide = [x.detach().cpu().double() for x in xs]
    flat = None if w is None else w.detach().cpu().double().reshape(-1)
    buffers = [b.detach().to(storage).cpu().double() for b in fusion.operand_buffers().values()]
    with torch.no_grad():
        # NaN and Inf decide nothing but their own row, where positions are compared and no error
        w64 = None if flat is None else _finite(flat)
        e = written.error_bound(arithmetic, [_finite(x) for x in wide], w64, *map(_finite, buffers))
        if e is None:
            return None
        y = fusion.fuse(wide, flat, *buffers)
        if not written.propagates_inf:  # this form may give NaN where eager gives Inf, or the other way about
            e = torch.where(_meets_infinity(wide, [*buffers, *([] if flat is None else [flat])]), torch.inf, e)
        if arithmetic.dtype != storage:
            last = Arithmetic(storage)
            e = torch.where(last.may_overflow(y, e), torch.inf, e + last.u * (y.abs().nan_to_num(0, 0) + e) + last.eta)
        each = array(e.broadcast_to(y.shape))
    return Tolerance(None if storage == torch.float64 else array(y), each, each, DERIVED)


def _meets_infinity(xs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return, for each row (..., 1), whether it has an infinite entry, or the parameters have one."""
    rows = torch.stack([x.isinf().any(-1, keepdim=True) for x in xs]).any(0)
    return rows | any(bool(p.isinf().any()) for p in parameters)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0, 0, 0)


class MeasuredTolerance:
    """The tolerance of a module for which no bound is derived: what rounding does to each entry of its outputs.

    The module is run with shadows in float64. An entry may be off by 8 times what they part at most there, and by more
    where eager execution is further from float64 than they say: what a kernel loses beyond one rounding an operator
    shows in a tenth of an output's entries at least, and is measured there.

    run: gives the module's outputs for a call's arguments.
    """

    def __init__(self, run: Callable[[tuple[Any, ...]], list[Tensor]], module: torch.nn.Module) -> None:
        self.rule = MEASURED
        self._run = run
        self._shared = [*module.parameters(), *module.buffers()]
        self._scales: dict[int, float] = {}

    def __call__(
        self, args: tuple[Any, ...], eager: Sequence[Tensor], hostile: bool = False, count: int = SHADOWS
    ) -> list[Tolerance]:
        """Return the tolerance of each output at these inputs, from so many shadows."""
        try:
            shadows, ys = self._shadows(args, eager, count=count, underflow=hostile)
        except Exception:  # whatever a module that was not made for float64 may raise
            self.rule = UNMEASURED
            return [self._constant(y) for y in eager]
        return [self._entrywise(shadows, i, *pair, hostile) for i, pair in enumerate(zip(eager, ys, strict=True))]

    def decisions(self, args: tuple[Any, ...], eager: Sequence[Tensor]) -> list[Array | None]:
        """Return what each output is, (runs, ...), where what rounding may decide is decided in several ways."""
        try:
            shadows, ys = self._shadows(args, eager, count=SHADOWS, free=True)
            if shadows.ranked:  # of many equal entries a few runs show few orders
                shadows, ys = self._shadows(args, eager, count=4 * SHADOWS, free=True)
        except Exception:
            return [None] * len(eager)
        runs = [[array(s) for s in shadows.of(y)] for y in ys]
        return [np.stack(r) if all(a.shape == y.shape for a in r) else None for r, y in zip(runs, eager, strict=True)]

    def _shadows(self, args: tuple[Any, ...], eager: Sequence[Tensor], **options: Any) -> tuple[Shadows, list[Tensor]]:
        larger = LARGER if any(y.dtype == torch.float64 for y in eager) else 1.0
        shadows = Shadows(shared=self._shared, larger=larger, **options)
        with shadows:
            ys = self._run(args)
        if [y.shape for y in ys] != [y.shape for y in eager]:
            raise RuntimeError("other shapes than eager execution's")
        return shadows, ys

    def _entrywise(self, shadows: Shadows, i: int, eager: Tensor, y: Tensor, hostile: bool) -> Tolerance:
        near = array(eager)
        if not eager.dtype.is_floating_point:
            return Tolerance(None, np.zeros_like(near), np.zeros_like(near), self.rule)
        truth, spread = array(shadows.of(y)[0]), array(shadows.spread(y))
        finite = np.isfinite(near) & np.isfinite(truth)
        spread = np.where(finite, np.nan_to_num(spread, nan=np.inf), 0.0)
        off = np.zeros_like(near)
        if eager.dtype != torch.float64:
            np.abs(np.subtract(near, truth, where=finite, out=off), out=off)
            scale = max(_scale(off[finite], spread[finite]), 1.0 if hostile else self._scales.get(i, 1.0))
            if not hostile:
                self._scales[i] = scale
            spread = np.maximum(scale * spread, off)
        arithmetic = Arithmetic(eager.dtype)
        size = np.where(np.isfinite(near), np.abs(near), 0)
        with np.errstate(over="ignore"):  # infinite: whatever the model gives is allowed
            each = FACTOR / 2 * spread + 2 * (arithmetic.u * size + arithmetic.eta)
        # finite in float64 and not in eager: the order of its sums decided that
        each = np.where(np.isfinite(truth) & ~np.isfinite(near), np.inf, each)
        return Tolerance(truth if eager.dtype != torch.float64 else None, each, each, self.rule)

    def _constant(self, y: Tensor) -> Tolerance:
        near = array(y)
        largest = float(np.abs(near[np.isfinite(near)]).max(initial=0))
        each = np.full(near.shape, 128 * unit(y.dtype) * largest)
        return Tolerance(None, each, each, self.rule)


def _scale(off: Array, spread: Array) -> float:
    """Return how many times further eager is from float64 than shadows part, for a tenth of the entries; 1 or more."""
    apart = spread > 0
    ratios = off[apart] / spread[apart]
    return max(float(np.quantile(ratios, 0.9)), 1.0) if ratios.size else 1.0
