"""ONNX's own cases of every operator: a session gives what ONNX Runtime alone gives, on all that it accepts."""

import random
import warnings

import numpy as np
import onnxruntime
import pytest

from fusion_onnx import Session

CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its cases overflow and divide by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        return load_model_tests(kind="node")


def same(x, y):
    """Whether two results are the same bits, NaN and the like of sequences and absent values included."""
    if isinstance(x, list | tuple):
        return isinstance(y, list | tuple) and len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, np.ndarray):
        alike = isinstance(y, np.ndarray) and (x.dtype, x.shape) == (y.dtype, y.shape)
        return alike and np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")
    return type(x) is type(y) and x == y


def alone(model, feeds):
    """Return what ONNX Runtime gives for each, twice the same, or None where it does not."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(model, options, providers=CPU)
        once, again = ([session.run(None, feed) for feed in feeds] for _ in range(2))
    except Exception:  # has no such kernel, or not for these types, or is given what is of no type
        return None
    return once if same(once, again) else None


def differing(cases):
    """Return how many ONNX Runtime accepts, and the names of those for which a session gives something else."""
    wrong, accepted = [], 0
    for case in cases:
        model = case.model.SerializeToString()
        names = [info.name for info in case.model.graph.input]
        feeds = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.data_sets]
        want = alone(model, feeds)
        if want is None:
            continue
        accepted += 1
        try:
            session = Session(model, "cpu", spin=False, threads=1)
            got = [session.run(feed) for feed in feeds]
        except Exception as error:
            wrong.append(f"{case.name}: {type(error).__name__}: {error}")
        else:
            if not same(want, got):
                wrong.append(case.name)
    return accepted, wrong


def test_a_sample_of_onnxs_cases(cases):
    accepted, wrong = differing(random.Random(0).sample(cases, 80))
    assert accepted > 40
    assert wrong == []


@pytest.mark.slow
def test_all_of_onnxs_cases(cases):
    accepted, wrong = differing(cases)
    assert accepted > 1300
    assert wrong == []
