"""One output against another: dtype, shape, NaN and Inf positions, and only then the error."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fusion_onnx.verification.tolerance import Array, Tolerance, array, dtype_name
from fusion_onnx.verification.verdict import Finding

BINS = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0, np.inf)
"""Upper bounds of the shares of the tolerance that histograms count: 0, up to 0.01, ..., above 1."""


def compare(
    case: str,
    output: str,
    dtypes: tuple[str, str],
    eager: Array,
    model: Array,
    allowed: npt.ArrayLike,
    decisions: Array | None = None,
) -> Finding:
    """Compare the model's values with eager's, both (...) in float64, entry by entry within `allowed` (broadcast).

    dtypes: eager's and the model's, by name. The sign of a zero is not compared. Where `allowed` is infinite, the order
    of operations decides whether the result overflows, and nothing is compared. decisions: other results (runs, ...)
    that eager may have had where rounding decides a comparison; an entry that is as one of these is a flip, no error.
    """
    failed, detail, error, limit, ratio, undetermined, flips = "", "", 0.0, 0.0, 0.0, 0, 0
    at: tuple[int, ...] = ()
    if dtypes[0] != dtypes[1]:
        failed, detail = "dtype", f"the model gives {dtypes[1]}, eager {dtypes[0]}"
    elif eager.shape != model.shape:
        failed, detail = "shape", f"the model gives {list(model.shape)}, eager {list(eager.shape)}"
    else:
        limits = np.broadcast_to(np.asarray(allowed, dtype=np.float64), eager.shape)
        free = np.isinf(limits)
        undetermined = int(free.sum())
        for kind, (a, b) in {
            "nan": (np.isnan(eager), np.isnan(model)),
            "inf": (np.where(np.isinf(eager), eager, 0), np.where(np.isinf(model), model, 0)),
        }.items():
            wrong = np.argwhere((a != b) & ~free)
            if len(wrong):
                at = tuple(int(i) for i in wrong[0])
                failed = kind
                detail = f"{len(wrong)} entries; at {list(at)} the model gives {model[at]:g}, eager {eager[at]:g}"
                break
        comparable = np.isfinite(eager) & np.isfinite(model) & ~free
        if decisions is not None:
            with np.errstate(invalid="ignore"):
                beyond = np.abs(model - eager) > limits
            flipped = comparable & beyond & _decided(eager, model, limits, decisions)
            comparable, flips = comparable & ~flipped, int(flipped.sum())
        errors = _errors(eager, model, comparable)
        if errors.size:
            ratios = _ratios(errors, limits)
            worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratios)), ratios.shape))
            error, limit, ratio = float(errors.max()), float(limits[worst]), float(ratios[worst])
            if not failed:
                at = worst
            if ratio > 1 and not failed:
                failed = "error"
                detail = f"at {list(at)} the model gives {model[at]:.9g}, eager {eager[at]:.9g}, allowed {limit:.3g}"
    return Finding(
        case, output, tuple(model.shape), dtypes[1], failed, detail, error, limit, ratio, at, undetermined, flips=flips
    )


def judge(case: str, output: str, eager: torch.Tensor, model: Any, tolerance: Tolerance) -> Finding:
    """Compare within a tolerance, and say which of the two drifted from float64."""
    a, b = array(eager), array(model)
    allowed = _fitting(tolerance.allowed, b)
    if tolerance.exact is not None and tolerance.exact.shape == b.shape and not tolerance.bits:
        # eager is no measure where it, and not the model, parts from the NaN and Inf of float64
        other = ~np.isfinite(b) & _alike(b, tolerance.exact) & ~_alike(a, tolerance.exact)
        allowed = np.where(other, np.inf, allowed)
    finding = compare(
        case, output, (dtype_name(eager), dtype_name(torch.as_tensor(model))), a, b, allowed, tolerance.decisions
    )
    if tolerance.exact is None or finding.failed in ("dtype", "shape"):
        return finding
    off = {
        "eager": _off(a, tolerance.exact, tolerance.reference),
        "model": _off(b, tolerance.exact, tolerance.tested),
    }
    detail = finding.detail
    if finding.failed == "error":
        drifted = [who for who, ratio in off.items() if ratio > 1] or [max(off, key=lambda who: off[who])]
        shares = ", ".join(f"{who} {ratio:.3g} ×" for who, ratio in off.items())
        detail += f"; from float64, in its own share of that: {shares}: {' and '.join(drifted)} drifted"
    elif finding.failed in ("nan", "inf"):
        detail += f"; in float64 it is {tolerance.exact[finding.at]:g}"
    return replace(finding, detail=detail, eager_ratio=off["eager"], model_ratio=off["model"])


def _alike(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    """Return where both are NaN, or the same infinity."""
    alike: npt.NDArray[np.bool_] = (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & (a == b))
    return alike


def _decided(eager: Array, model: Array, limits: Array, decisions: Array) -> npt.NDArray[np.bool_]:
    """Return where the model's value is one that eager may have had: as a run gives it, or between the runs'.

    Between them where they are many, for then the runs are a sample of what may be. Whole numbers that are decided so
    in one row are taken together: places in a ranking, where equal entries may stand in any of several.
    """
    with np.errstate(invalid="ignore"):
        low, high = np.minimum(decisions.min(0), eager), np.maximum(decisions.max(0), eager)
        ranked = np.sort(decisions, axis=0)
        many = 1 + (np.diff(ranked, axis=0) > limits).sum(0) > len(decisions) / 4
        near = (np.abs(decisions - model) <= limits).any(0)
        parted = high - low > limits  # what parts by less than is allowed for rounding is no decision
        if model.ndim and not limits.any():
            low = np.where(many, low, np.inf).min(-1, keepdims=True, initial=np.inf)
            high = np.where(many, high, -np.inf).max(-1, keepdims=True, initial=-np.inf)
        decided: npt.NDArray[np.bool_] = parted & (near | (many & (low <= model) & (model <= high)))
    return decided


def histogram(eager: Any = (), model: Any = (), tolerance: Tolerance | None = None) -> npt.NDArray[np.int64]:
    """Count the entries by their share of the tolerance, in the bins of `BINS`: 0 itself, then up to each bound."""
    if tolerance is None:
        return np.zeros(len(BINS), dtype=np.int64)
    ratios = _shares(array(eager), array(model), tolerance)
    places = np.searchsorted(np.asarray(BINS[:-1]), ratios[~np.isnan(ratios)], side="left")
    return np.bincount(places, minlength=len(BINS)).astype(np.int64)


def worst_entries(
    eager: Any, model: Any, tolerance: Tolerance, count: int
) -> list[tuple[tuple[int, ...], float, float, float, float]]:
    """Return the entries with the largest share: (place, eager's value, the model's, allowed, share)."""
    a, b = array(eager), array(model)
    shares = np.nan_to_num(_shares(a, b, tolerance), nan=-1.0, posinf=np.inf)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    places = [tuple(int(i) for i in np.unravel_index(i, a.shape)) for i in order if shares.flat[i] > 0]
    each = replace(tolerance, bits=False).allowed
    return [(at, float(a[at]), float(b[at]), float(each[at]), float(shares[at])) for at in places]


def _shares(a: Array, b: Array, tolerance: Tolerance) -> Array:
    """Return error / tolerance, entry by entry; NaN where nothing is compared."""
    limits = replace(tolerance, bits=False).allowed
    comparable = np.isfinite(a) & np.isfinite(b) & np.isfinite(limits)
    errors = _errors(a, b, comparable)
    return np.where(comparable, _ratios(errors, limits), np.nan)


def _fitting(allowed: Array, model: Array) -> npt.ArrayLike:
    return allowed if allowed.shape == model.shape else 0.0  # another shape fails before the error is looked at


def _off(values: Array, exact: Array, allowed: Array) -> float:
    comparable = np.isfinite(values) & np.isfinite(exact) & np.isfinite(allowed)
    errors = _errors(exact, values, comparable)
    return float(_ratios(errors, allowed).max(initial=0))


def _errors(a: Array, b: Array, comparable: npt.NDArray[np.bool_]) -> Array:
    with np.errstate(over="ignore"):
        errors: Array = np.abs(np.subtract(b, a, where=comparable, out=np.zeros_like(a)))
    return errors


def _ratios(errors: Array, limits: Array) -> Array:
    with np.errstate(over="ignore"):
        ratios: Array = np.divide(errors, limits, where=limits > 0, out=np.where(errors > 0, np.inf, 0.0))
    return ratios
