"""Run the stored models in an environment without torch and onnx: python deployment.py, in a folder that holds them."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

import fusion_onnx


def main() -> int:
    for absent in ("torch", "onnx", "onnxscript"):
        assert importlib.util.find_spec(absent) is None, f"{absent} is installed here"
    models = sorted(Path().glob("*.onnx"))
    assert models, "no stored models here"
    for path in models:
        session = fusion_onnx.Session(path)
        with np.load(path.with_suffix(".npz")) as arrays:
            (y,) = session.run({info.name: arrays[info.name] for info in session.inputs})
            np.testing.assert_allclose(y, arrays["y"], rtol=1e-4, atol=1e-4)
        print(f"{path.name}: {len(y)} samples on {session.providers[0]}, equal to the stored outputs")
    assert len(fusion_onnx.names()) >= 18
    print(f"creating a fusion here says: {needs_torch()}")
    return 0


def needs_torch() -> str:
    try:
        fusion_onnx.create("sum")
    except ImportError as error:
        if "fusion-onnx[export]" in str(error):
            return str(error)
        raise
    raise AssertionError("create() worked without torch")


if __name__ == "__main__":
    sys.exit(main())
