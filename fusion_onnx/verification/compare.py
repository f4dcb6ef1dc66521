"""One output against another: dtype, shape, NaN and Inf positions, and only then the error."""

import numpy as np
import numpy.typing as npt

from fusion_onnx.verification.verdict import Finding

Array = npt.NDArray[np.float64]


def compare(
    case: str, output: str, dtypes: tuple[str, str], eager: Array, model: Array, allowed: npt.ArrayLike
) -> Finding:
    """Compare the model's values with eager's, both (...) in float64, entry by entry within `allowed` (broadcast).

    dtypes: eager's and the model's, by name. The sign of a zero is not compared.
    """
    failed, detail, error, limit, ratio = "", "", 0.0, 0.0, 0.0
    at: tuple[int, ...] = ()
    if dtypes[0] != dtypes[1]:
        failed, detail = "dtype", f"the model gives {dtypes[1]}, eager {dtypes[0]}"
    elif eager.shape != model.shape:
        failed, detail = "shape", f"the model gives {list(model.shape)}, eager {list(eager.shape)}"
    else:
        for kind, (a, b) in {
            "nan": (np.isnan(eager), np.isnan(model)),
            "inf": (np.where(np.isinf(eager), eager, 0), np.where(np.isinf(model), model, 0)),
        }.items():
            wrong = np.argwhere(a != b)
            if len(wrong):
                at = tuple(int(i) for i in wrong[0])
                failed = kind
                detail = f"{len(wrong)} entries; at {list(at)} the model gives {model[at]:g}, eager {eager[at]:g}"
                break
        finite = np.isfinite(eager) & np.isfinite(model)
        errors = np.abs(np.subtract(model, eager, where=finite, out=np.zeros_like(eager)))
        limits = np.broadcast_to(np.asarray(allowed, dtype=np.float64), errors.shape)
        if errors.size:
            ratios = np.divide(errors, limits, where=limits > 0, out=np.where(errors > 0, np.inf, 0.0))
            worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratios)), ratios.shape))
            error, limit, ratio = float(errors.max()), float(limits[worst]), float(ratios[worst])
            if not failed:
                at = worst
            if ratio > 1 and not failed:
                failed = "error"
                detail = f"at {list(at)} the model gives {model[at]:.9g}, eager {eager[at]:.9g}, allowed {limit:.3g}"
    return Finding(case, output, tuple(model.shape), dtypes[1], failed, detail, error, limit, ratio, at)
