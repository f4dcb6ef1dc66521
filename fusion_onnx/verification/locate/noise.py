"""How far each of eager's values is from float64, and so how far a model's may be from it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.shadow import LARGER, Shadows
from fusion_onnx.verification.tolerance import FACTOR, Array, array, unit
from fusion_onnx.verification.trace import Key, Trace, traced

RUNS = 4
"""Shadows of every value are held at once: few."""


class Noise:
    """How far rounding may put each value of eager execution off: the largest over all runs it was given."""

    def __init__(self, run: EvalMode) -> None:
        self._run = run
        self._measured: dict[Key, float] = {}
        self._overflowed: set[Key] = set()

    def measure(self, args: tuple[Any, ...], eager: Trace) -> None:
        """Take one run into account; a run that cannot be followed in float64 is left out."""
        larger = LARGER if _any_double(eager) else 1.0
        parameters = [*self._run.module.parameters(), *self._run.module.buffers()]
        shadows = Shadows(RUNS, shared=parameters, larger=larger)
        try:
            with shadows:
                again = traced(self._run, args)
        except Exception:  # whatever a module that was not made for float64 may raise
            return
        aligned = eager.operators == again.operators
        others = dict(again.keyed())
        for key, value in eager.keyed():
            other = others.get(key)
            if other is None or other.shape != value.shape or (key[0] == "any" and not aligned):
                continue
            exact, spread = array(shadows.of(other)[0]), array(shadows.spread(other))
            with np.errstate(invalid="ignore"):  # inf - inf
                off = np.abs(array(value) - exact) if value.dtype != torch.float64 else np.zeros_like(exact)
            finite = np.isfinite(exact) & np.isfinite(spread) & np.isfinite(off)
            if not finite.all() and np.isfinite(array(value)[~finite]).any():
                self._overflowed.add(key)  # float32 did, where float64 does not, so it says nothing of float64's error
            most = float(np.maximum(off, spread)[finite].max(initial=0.0))
            self._measured[key] = max(self._measured.get(key, 0.0), most)

    def allowed(self, key: Key, value: Tensor) -> Array:
        """Return what the model's value may differ by, entry by entry: 8 × the distance, + 4 u |y|."""
        return allowed(value, None if key in self._overflowed else self._measured.get(key))


def allowed(value: Tensor, distance: float | None) -> Array:
    """Return 8 × the distance + 4 u |y|, entry by entry; without one, 256 u max |y|."""
    size = np.abs(array(value))
    size = np.where(np.isfinite(size), size, 0.0)
    if distance is None:
        return np.full_like(size, 256 * unit(value.dtype) * (size.max() if size.size else 0.0))
    return np.asarray(FACTOR * distance + 4 * unit(value.dtype) * size)


def _any_double(trace: Trace) -> bool:
    return any(value.dtype == torch.float64 for _, value in trace.keyed())
