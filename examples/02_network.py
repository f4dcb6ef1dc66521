"""A network with two fusions: exported with a dynamic batch, verified, and run at batch sizes that it never saw.

An image and a text are fused into one representation; two heads judge it, and the mean of both is the answer.

Install: pip install "fusion-onnx[all]"
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import fusion_onnx


class Network(nn.Module):
    """From an image's 64 features and a text's 32 to the probabilities of 3 classes."""

    def __init__(self):
        super().__init__()
        projection = fusion_onnx.create("low_rank_concatenation", dims=[64, 32], n=16, r=4)
        self.views = fusion_onnx.FusionLayer(projection)  # a FusionLayer owns the fusion's trainable parameters
        self.heads = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)])
        self.vote = fusion_onnx.FusionLayer(fusion_onnx.create("mean", dims=[3, 3]))

    def forward(self, image, text):
        hidden = self.views(image, text).relu()
        return self.vote(*[head(hidden).softmax(-1) for head in self.heads])


torch.manual_seed(0)
network = Network().eval()
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "network.onnx"
    result = fusion_onnx.export(network, (torch.randn(8, 64), torch.randn(8, 32)), path)
    session = fusion_onnx.Session(path, providers="cpu")

print("Fusions:", [node.name for node in result.model.graph.node if node.domain == "fusion_onnx"])
print("Inputs:", [(one.name, one.shape) for one in session.inputs])
print("Equal to PyTorch:", sorted({finding.case for finding in result.verdict.findings if finding.passed}))
for batch in (1, 5, 100):
    image, text = torch.randn(batch, 64), torch.randn(batch, 32)
    (y,) = session.run(image=image, text=text)
    print(f"Batch {batch}: {tuple(y.shape)}, equal: {torch.allclose(y, network(image, text), atol=1e-6)}")
