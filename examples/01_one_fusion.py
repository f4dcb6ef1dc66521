"""One fusion: create it, export it to an ONNX file, run the file in ONNX Runtime.

Three thermometers measure the same four rooms, and one of them is broken: the median does not mind.

Install: pip install "fusion-onnx[all]"
"""

import tempfile
from pathlib import Path

import torch

import fusion_onnx

readings = [
    torch.tensor([[20.0, 21.5, 19.0, 22.0], [20.5, 21.5, 19.5, 22.0]]),
    torch.tensor([[20.5, 21.0, 19.5, 22.5], [20.5, 22.0, 19.0, 22.5]]),
    torch.tensor([[20.0, 21.0, 85.0, 85.0], [85.0, 21.0, 85.0, 85.0]]),
]
median = fusion_onnx.create("median", dims=[4, 4, 4])  # a torch.nn.Module; `fusion-onnx list` shows all strategies
print("PyTorch:", median(readings).tolist())

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "median.onnx"
    result = fusion_onnx.export(median, (readings,), path)  # the file is compared with PyTorch before it is written
    session = fusion_onnx.Session(path, providers="cpu")
    (y,) = session.run(*readings)

print("ONNX Runtime:", y.tolist())
print("The file's node:", [node.op_type for node in result.model.graph.node])
print("Verdict:", result.verdict)
