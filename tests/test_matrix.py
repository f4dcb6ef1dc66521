"""Every strategy in every runtime that is here: equal to eager execution, or documented with a file that shows why."""

import json

import numpy as np
import pytest

import fusion_onnx
from fusion_onnx.testing.matrix import matrix
from fusion_onnx.verification import backends, known
from tests.differences import ENTRIES, FOLDER, page

DIFFERENCES = known.load(FOLDER)
SLOW = ["torch_compile"]  # some seconds a strategy
FAST = [name for name in backends.names() if name not in SLOW]
CHUNKS = [fusion_onnx.names()[i::6] for i in range(6)]


@pytest.mark.parametrize(
    ("strategies", "dtypes", "runtimes"),
    [
        *((chunk, ["float32"], FAST) for chunk in CHUNKS),
        (["max", "mean", "low_rank_concatenation"], ["float16", "float64"], FAST),
        *(pytest.param(chunk, ["float32"], SLOW, marks=pytest.mark.slow) for chunk in CHUNKS),
    ],
    ids=lambda names: names[0],
)
def test_every_strategy_in_every_runtime(strategies, dtypes, runtimes):
    found = matrix(strategies, runtimes, dtypes, cases=1, known=DIFFERENCES)
    assert [p for cell in found.cells for p in cell.unexplained] == []
    missing = {runtime.name for runtime in found.runtimes if runtime.missing}
    for cell in found.cells:
        assert (cell.verdict == "missing") == (cell.runtime in missing)
        assert cell.verdict != "cannot"
        if cell.verdict != "missing":
            assert cell.elements > 0
        if cell.runtime in ("onnxruntime_cpu", "onnx_reference"):
            assert cell.verdict == "equal"
            assert cell.ratio <= 1
            if fusion_onnx.get(cell.strategy).bitwise:
                assert cell.same_bits
    for runtime in found.runtimes:
        assert bool(runtime.version) != bool(runtime.missing)


def close(a, b):
    return np.allclose(a, b, rtol=4 * np.finfo(b.dtype).eps, atol=0, equal_nan=True)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.id)
def test_a_documented_difference_still_shows(difference):
    arrays = dict(np.load(FOLDER / difference.id / "inputs.npz"))
    y = arrays.pop("y")
    model = (FOLDER / difference.id / "model.onnx").read_bytes()
    if backends.get(difference.runtime).missing():
        pytest.skip(backends.get(difference.runtime).missing())
    with backends.start("onnx_reference") as reference, backends.start(difference.runtime) as runtime:
        reference.load(model)
        assert close(reference.run(list(arrays.values()))[0], y)
        runtime.load(model)
        assert not close(runtime.run(list(arrays.values()))[0], y)


def test_the_page_lists_every_difference():
    assert {d.id for d in DIFFERENCES} == set(ENTRIES)
    assert (FOLDER.parent / "differences.md").read_text(encoding="utf-8") == page(DIFFERENCES)


def test_a_difference_that_is_not_documented_is_none_that_passes():
    found = matrix(["max"], ["tract"], cases=1) if not backends.get("tract").missing() else None
    if found is None:
        pytest.skip(backends.get("tract").missing())
    assert not found.passed
    cell = found.cell("max", "tract")
    assert cell.verdict == "differs"
    assert {p.failed for p in cell.problems} == {"nan"}
    assert any("max on NaN in x1" in line for line in found.notes())
    assert json.loads(found.to_json())["passed"] is False


def test_what_is_asked_for_wrongly():
    with pytest.raises(ValueError, match="there is no runtime 'tracts'"):
        matrix(["max"], ["tracts"])
    with pytest.raises(ValueError, match="int8"):
        matrix(["max"], ["onnxruntime_cpu"], ["int8"])
