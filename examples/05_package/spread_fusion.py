"""Spread: y = max x_i - min x_i, entry by entry: how far the members of an ensemble disagree."""

import numpy as np
import torch

import fusion_onnx


class SpreadFusion(fusion_onnx.Fusion):
    """The range of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula, rule_n, rule_l = "max x_i - min x_i", "n_1", "0"
    equal_dims = True
    cases = (fusion_onnx.Case(dims=(4, 4)), fusion_onnx.Case(dims=(3, 3, 3)))

    def calculate_n(self, dims=None):
        return (dims or self.dims)[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w):
        stacked = torch.stack(list(xs))
        return stacked.amax(0) - stacked.amin(0)

    def decompose(self, op, xs, w):
        return op.Sub(op.Max(*xs), op.Min(*xs))

    def reference(self, xs, w):
        return np.ptp(np.stack(xs), axis=0)
