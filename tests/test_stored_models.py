"""The models in models/ run without torch, on the inputs stored beside them, to the outputs stored beside them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusion_onnx

MODELS = sorted((Path(__file__).parent.parent / "models").glob("*.onnx"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    session = fusion_onnx.Session(path, "cpu")
    arrays = np.load(path.with_suffix(".npz"))
    (y,) = session.run({info.name: arrays[info.name] for info in session.inputs})
    np.testing.assert_allclose(y, arrays["y"], rtol=1e-4, atol=1e-4)
    assert len(y) == 16
    one = {info.name: arrays[info.name][:1] for info in session.inputs}
    np.testing.assert_allclose(session.run(one)[0], arrays["y"][:1], rtol=1e-4, atol=1e-4)


def test_there_is_one_for_each_data_set():
    assert {path.stem for path in MODELS} == {"digits", "breast_cancer"}


def test_running_one_imports_neither_torch_nor_onnx():
    code = (
        "import sys, numpy as np, fusion_onnx as f\n"
        f"s = f.Session({str(MODELS[0])!r}); a = np.load({str(MODELS[0].with_suffix('.npz'))!r})\n"
        "s.run({i.name: a[i.name] for i in s.inputs}); f.names()\n"
        "print([m for m in ('torch', 'onnx', 'onnxscript', 'onnx_ir') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
