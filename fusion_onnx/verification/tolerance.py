"""How far two correct results may be apart, entry by entry: E(eager) + E(model), each from its own arithmetic.

    E = e + u_s (|y| + e) + η_s

with e what the computation loses in the type it computes in, derived by the strategy (`Fusion.error_bound`) from the
actual inputs in float64, and the rest what the last rounding loses, to the type of the output, where that is another
one (u_s its unit roundoff, η_s its smallest subnormal). Where no strategy's bound holds, as for a whole network, what
eager execution loses against float64 is measured instead.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.arithmetic import Arithmetic
from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer

Array = npt.NDArray[np.float64]

FACTOR = 8
PROBES = 8
BITS = "0: the strategy fixes the order of operations, so eager and the CPU provider give the same bits"
DERIVED = "E(eager) + E(model): the strategy's own bound, entry by entry, in float64 for these inputs"
MEASURED = (
    f"{FACTOR} × the largest |eager − float64| over {PROBES} + 1 draws of the input, + 4 (u |y| + η) "
    "(u, η: unit roundoff and smallest subnormal of the output's dtype)"
)
UNMEASURED = (
    "256 u max |y| (u: unit roundoff of the output's dtype): the module cannot be run in float64, "
    "so its own error cannot be measured"
)
_LOW_PRECISION = (torch.float16, torch.bfloat16)
_DOUBLE_PER_SINGLE = 2.0**-29  # the machine epsilon of float64 over that of float32


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


def unit(dtype: torch.dtype) -> float:
    """Return the unit roundoff of a dtype; 0 for whole numbers."""
    return Arithmetic(dtype).u if dtype.is_floating_point else 0.0


def bare_call(module: torch.nn.Module, args: Sequence[Any]) -> tuple[Fusion, list[Tensor], Tensor | None] | None:
    """Return fusion, inputs and parameters where the module is a fusion, or a layer of one, and nothing else."""
    if isinstance(module, FusionLayer):
        xs = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
        return (module.fusion, list(xs), getattr(module, "w", None)) if _plain(module.fusion) else None
    if isinstance(module, Fusion) and _plain(module) and args:
        return module, list(args[0]), args[1] if len(args) > 1 else None
    return None


def _plain(fusion: Fusion) -> bool:
    return fusion.is_strategy() and not fusion.preprocess_functions and not fusion.postprocess_functions


def derived(fusion: Fusion, xs: Sequence[Tensor], w: Tensor | None) -> Tolerance | None:
    """Return the tolerance that the strategy's bound gives for these inputs; None where it states none.

    The fusion's pre- and postprocess functions are left out: xs is what the strategy itself sees.
    """
    storage = xs[0].dtype
    arithmetic = Arithmetic(torch.float32 if storage in _LOW_PRECISION and not fusion.exact else storage)
    wide = [x.detach().cpu().double() for x in xs]
    flat = None if w is None else w.detach().cpu().double().reshape(-1)
    buffers = [b.detach().to(storage).cpu().double() for b in fusion._buffers.values() if b is not None]
    with torch.no_grad():
        # NaN and Inf decide nothing but their own row, where positions are compared and no error
        w64 = None if flat is None else _finite(flat)
        e = fusion.error_bound(arithmetic, [_finite(x) for x in wide], w64, *map(_finite, buffers))
        if e is None:
            return None
        y = fusion.fuse(wide, flat, *buffers)
        if not fusion.infinities:  # this form may give NaN where eager gives Inf, or the other way about
            e = torch.where(_meets_infinity(wide, [*buffers, *([] if flat is None else [flat])]), torch.inf, e)
        if arithmetic.dtype != storage:
            last = Arithmetic(storage)
            e = torch.where(last.may_overflow(y, e), torch.inf, e + last.u * (y.abs().nan_to_num(0, 0) + e) + last.eta)
        each = array(e.broadcast_to(y.shape))
    return Tolerance(None if storage == torch.float64 else array(y), each, each, DERIVED)


def _meets_infinity(xs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return, for each row (..., 1), whether it has an infinite entry, or the parameters have one."""
    found = torch.stack([x.isinf().any(-1, keepdim=True) for x in xs]).any(0)
    return found | any(bool(p.isinf().any()) for p in parameters)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0, 0, 0)


class Measured:
    """The tolerance of a module for which no bound is derived: what it loses against its own copy in float64."""

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...], eager: Sequence[Tensor]) -> None:
        self.rule = MEASURED
        self._module = module
        try:
            self._exact, self._single = copy.deepcopy(module).double(), copy.deepcopy(module).float()
            self._lost = self._draws(args, PROBES, eager)
        except Exception:  # whatever a module that was not made for float64 may raise
            self.rule = UNMEASURED
            finite = [array(y)[np.isfinite(array(y))] for y in eager]
            largest = [float(np.abs(y).max(initial=0)) for y in finite]
            self._lost = [256 * unit(y.dtype) * size for y, size in zip(eager, largest, strict=True)]

    def __call__(self, args: tuple[Any, ...], eager: Sequence[Tensor], hostile: bool = False) -> list[Tolerance]:
        """Return the tolerance for each output at these inputs; hostile ones are of another size, so measured anew."""
        if self.rule == UNMEASURED:
            return [self._constant(y, lost) for y, lost in zip(eager, self._lost, strict=True)]
        lost = self._draws(args, PROBES // 2, eager) if hostile else self._lost
        truths = outputs(self._exact, _cast(args, torch.float64))
        found = []
        for y, truth, largest in zip(eager, truths, lost, strict=True):
            near, far = array(y), array(truth)
            size = np.abs(np.where(np.isfinite(near), near, 0))
            arithmetic = Arithmetic(y.dtype if y.dtype.is_floating_point else torch.float64)
            each = FACTOR / 2 * largest + 2 * (arithmetic.u * size + arithmetic.eta) * y.dtype.is_floating_point
            if near.shape == far.shape:  # finite in float64 and not in eager: the order of its sums decided that
                each = np.where(np.isfinite(far) & ~np.isfinite(near), np.inf, each)
            exact = far if y.dtype != torch.float64 and near.shape == far.shape else None
            found.append(Tolerance(exact, each, each, self.rule))
        return found

    def _constant(self, y: Tensor, lost: float) -> Tolerance:
        each = np.full(y.shape, lost / 2)
        return Tolerance(None, each, each, self.rule)

    def _draws(self, args: tuple[Any, ...], count: int, given: Sequence[Tensor]) -> list[float]:
        """Return, for each output, the largest |eager - float64| over the inputs, for which it is given, and others.

        A float64 module has nothing better to be compared with: what float32 loses against it, times the ratio of
        their machine epsilons, says how much it loses itself.
        """
        generator = torch.Generator().manual_seed(1)
        largest = [0.0] * len(given)
        double = any(y.dtype == torch.float64 for y in given)
        for draw in range(count + 1):
            tried, eager = args, given
            if draw:
                leaves, spec = pytree.tree_flatten(args)
                tried = pytree.tree_unflatten(
                    [resampled(t, 0, t.shape[0], generator) if isinstance(t, Tensor) and t.ndim else t for t in leaves],
                    spec,
                )
                eager = outputs(self._module, tried)
            truth = outputs(self._exact, _cast(tried, torch.float64))
            coarse = outputs(self._single, _cast(tried, torch.float32)) if double else eager
            for i, (a, b, c) in enumerate(zip(eager, truth, coarse, strict=True)):
                lost, ratio = (c, _DOUBLE_PER_SINGLE) if a.dtype == torch.float64 else (a, 1.0)
                with np.errstate(invalid="ignore"):  # inf - inf
                    difference = np.abs(array(lost) - array(b)) * ratio
                finite = difference[np.isfinite(difference)]
                largest[i] = max(largest[i], float(finite.max(initial=0)))
        return largest


def outputs(module: torch.nn.Module, args: Sequence[Any]) -> list[Tensor]:
    """Run a module, and return the tensors it gives."""
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(module(*args)) if isinstance(leaf, Tensor)]


def resampled(tensor: Tensor, axis: int, size: int, generator: torch.Generator) -> Tensor:
    """Return the tensor with another size along an axis; values drawn from its own, whole slices for whole numbers."""
    shape = [size if i == axis else s for i, s in enumerate(tensor.shape)]
    if tensor.numel() == 0 or size == 0:
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    if not tensor.dtype.is_floating_point:
        rows = torch.randint(tensor.shape[axis], (size,), generator=generator).to(tensor.device)
        return tensor.detach().index_select(axis, rows)
    chosen = torch.randint(tensor.numel(), (int(np.prod(shape)),), generator=generator).to(tensor.device)
    return tensor.detach().flatten()[chosen].reshape(shape)


def _cast(args: tuple[Any, ...], dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda t: t.detach().to(dtype) if t.dtype.is_floating_point else t.detach(), args
    )
