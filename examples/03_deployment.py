"""Deployment: a process that has loaded neither torch nor onnx runs an exported file.

Two processes stand for two machines. The first has PyTorch and exports; it ends before the second starts a session.

Install: pip install "fusion-onnx[all]" where the file is made, pip install "fusion-onnx[cpu]" where it runs.
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np

import fusion_onnx


def export(path):
    """Make the file; in a process of its own, where PyTorch is imported."""
    import torch

    layer = fusion_onnx.FusionLayer(fusion_onnx.create("learned_weighted_sum", dims=[3, 3]), init=[0.75, 0.25])
    fusion_onnx.export(layer, (torch.zeros(2, 3), torch.zeros(2, 3)), path, input_names=["camera", "radar"])


def serve(path):
    """Answer two requests; needs numpy and onnxruntime only."""
    session = fusion_onnx.Session(path, providers="cpu")
    print("Inputs:", [(one.name, one.shape, one.dtype) for one in session.inputs])
    camera, radar = np.array([[8, 4, 0]], np.float32), np.array([[4, 4, 4]], np.float32)
    print("Answer:", session.run(camera=camera, radar=radar)[0].tolist())
    try:
        session.run(camera=camera, radar=radar[:, :2])
    except fusion_onnx.InputError as error:
        print("Wrong input:", error)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "detector.onnx"
        first = multiprocessing.get_context("spawn").Process(target=export, args=(file,))
        first.start()
        first.join()
        serve(file)
    print("Loaded here:", {name: name in sys.modules for name in ("torch", "onnx", "onnxruntime")})
