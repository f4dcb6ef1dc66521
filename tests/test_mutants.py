"""What is wrong is found: kinds of mutants of every strategy's export and a network's, at three scales."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch

import fusion_onnx
from fusion_onnx import Session, verify
from fusion_onnx.verification.tolerance import array
from tests.mutants import KINDS, SPECIAL, given, mutants, subject

SCALES = (1.0, 1e-4, 1e4)
SUBJECTS = [*fusion_onnx.names(), "network"]


def spoilt(args, kind, dtype):
    """Put a special value, or subnormal ones, into the first row, for the kinds that lose them."""
    if kind not in SPECIAL:
        return args
    first = args[0][0] if isinstance(args[0], list) else args[0]
    tiny = torch.finfo(dtype).smallest_normal
    first[0, 0] = SPECIAL[kind]
    if kind == "flushed to zero":
        for x in args[0] if isinstance(args[0], list) else args:
            x[0] = tiny * torch.linspace(0.3, 0.9, x.shape[-1], dtype=dtype)
    return args


def equivalent(module, honest, mutant, args):
    """Whether rounding explains the mutant on this data.

    It does where the strategy promises no bits and, in every row, no entry is farther from float64 than 4 × the
    farthest of the row's honest results (eager's and the model's) and 2 ulp: another order of summation gives as much.
    Where bits are promised, only the same bits are equivalent.
    """
    with torch.no_grad():
        eager = array(module(*args))
        exact = array(copy.deepcopy(module).double()(*doubled(args)))
    flat = [t for arg in args for t in (arg if isinstance(arg, list) else [arg])]
    a, b = (array(s.run(*flat)[0]) for s in (honest, mutant))
    if a.shape != b.shape or np.any(np.isnan(a) != np.isnan(b)) or np.any(np.isinf(a) != np.isinf(b)):
        return False
    if getattr(module, "bitwise", False) or flat[0].dtype == torch.float64:
        return np.array_equal(a, b, equal_nan=True)
    ok = np.isfinite(a) & np.isfinite(exact)
    off = [np.where(ok, np.abs(np.where(ok, v, 0) - np.where(ok, exact, 0)), 0) for v in (eager, a, b)]
    floor = 4 * np.maximum(off[0], off[1]).max(-1, keepdims=True)
    info = torch.finfo(flat[0].dtype)
    ulp = np.maximum(info.eps * np.abs(np.where(ok, exact, 0)), info.smallest_normal * info.eps)
    return not np.any(off[2] > np.maximum(floor, 2 * ulp))


def doubled(args):
    return [[t.double() for t in arg] if isinstance(arg, list) else arg.double() for arg in args]


def judged(name, dtype):
    """Yield (kind, scale, whether it is caught), equivalent mutants left out."""
    module, model = subject(name, dtype)
    honest = Session(model, "cpu")
    for kind, mutant in mutants(name, dtype):
        if ("float32" in kind) != (dtype == torch.float64):
            continue
        session = Session(mutant, "cpu")
        for scale in SCALES:
            args = spoilt(given(name, module, scale, dtype), kind, dtype)
            if not equivalent(module, honest, session, args):
                yield kind, scale, not verify(module, mutant, args).passed


@pytest.fixture(scope="module")
def table():
    return [
        (name, dtype, *row)
        for dtype in (torch.float32, torch.float64)
        for name in SUBJECTS
        for row in judged(name, dtype)
    ]


def share(rows):
    return f"{sum(caught for *_, caught in rows)}/{len(rows)}"


def test_mutants_are_caught(table, record_property):
    kinds = list(dict.fromkeys(row[2] for row in table))
    heading = f"{'kind of mutant':42}" + "".join(f"{scale:>9g}" for scale in SCALES)
    for kind in kinds:
        at = [[r for r in table if r[2:4] == (kind, scale)] for scale in SCALES]
        record_property(heading, f"{kind:42}" + "".join(f"{share(rows):>9}" for rows in at))
    at = [[r for r in table if r[3] == scale] for scale in SCALES]
    record_property(heading, f"{'together':42}" + "".join(f"{share(rows):>9}" for rows in at))
    missed = [f"{kind} of {name}, {dtype}, scale {scale:g}" for name, dtype, kind, scale, caught in table if not caught]
    assert len(kinds) >= 24
    assert set(kinds) == set(KINDS)
    for scale in SCALES:
        at = [row for row in table if row[3] == scale]
        assert sum(row[-1] for row in at) >= 0.95 * len(at), missed
    found = Counter(row[2] for row in table if row[-1])
    assert set(found) == set(KINDS)


def test_every_subject_is_mutated(table):
    assert {row[0] for row in table} == set(SUBJECTS)
    assert min(Counter(row[0] for row in table).values()) >= 12


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("scale", SCALES)
def test_the_unchanged_model_passes(name, scale):
    module, model = subject(name)
    assert verify(module, model, given(name, module, scale, torch.float32)).passed
