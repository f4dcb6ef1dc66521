"""A strategy of one's own: its maths in PyTorch, in ONNX and in NumPy, checked against each other, then exported.

The geometric mean pools the probabilities of an ensemble: one member that is sure of "no" has a veto.

Install: pip install "fusion-onnx[all]"
"""

import numpy as np
import torch

import fusion_onnx


@fusion_onnx.register  # known from now on as geometric_mean
class GeometricMeanFusion(fusion_onnx.Fusion):
    """y = (Π x_i)^(1/k), entry by entry, for positive x_i; n = n_1, l = 0."""

    formula = "(Π x_i)^(1/k)"
    equal_dims = True  # all inputs have one shape
    cases = (fusion_onnx.Case(dims=(4, 4)), fusion_onnx.Case(dims=(3, 3, 3)))  # the settings that checks try

    def calculate_n(self, dims=None):
        return (dims or self.dims)[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w):
        return torch.stack(list(xs)).log().mean(0).exp()

    def decompose(self, op, xs, w):
        return op.Exp(op.Div(op.Sum(*[op.Log(x) for x in xs]), op.constant(len(xs))))

    def reference(self, xs, w):
        return np.exp(np.log(np.stack(xs)).mean(0))


fusion_onnx.testing.check_fusion(GeometricMeanFusion)
print("Every check of the contract holds.")

members = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.8, 0.2]]), torch.tensor([[0.999, 0.001]])]
pool = fusion_onnx.create("geometric_mean", dims=[2, 2, 2])
result = fusion_onnx.export(pool, (members,))  # without a path: kept in memory
(y,) = fusion_onnx.Session(result, providers="cpu").run(*members)
print("Pooled:", [round(value, 3) for value in y[0].tolist()])
