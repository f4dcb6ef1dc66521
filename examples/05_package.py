"""A strategy in a package of its own: once it is installed, fusion-onnx and its command line know it by name.

The package is the folder 05_package beside this script: a module, and a pyproject.toml with the entry point
`spread = "spread_fusion:SpreadFusion"` in the group `fusion_onnx.fusions`. Nothing here imports the module.

Install: pip install "fusion-onnx[all]", then, in the folder of this script, pip install ./05_package
"""

import torch

import fusion_onnx

print("Known:", "spread" in fusion_onnx.names())  # `fusion-onnx list` shows it too
print("Defined in:", fusion_onnx.get("spread").__module__)

members = [torch.tensor([[0.5, 0.25], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.25, 0.0]])]
spread = fusion_onnx.create("spread", dims=[2, 2])
result = fusion_onnx.export(spread, (members,))
print("The file's node:", [node.op_type for node in result.model.graph.node])
(y,) = fusion_onnx.Session(result, providers="cpu").run(*members)
print("How far the members disagree:", y.tolist())
