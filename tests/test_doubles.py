"""float64 networks: the numbers in them are exported with all their digits."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusion_onnx import export


class Of(nn.Module):
    """What a function makes of x."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


MODULES = {
    "layer norm": nn.LayerNorm(4),
    "layer norm of two axes": nn.LayerNorm((6, 4), bias=False),
    "batch norm": nn.BatchNorm1d(6),
    "leaky relu": nn.LeakyReLU(),
    "elu": nn.ELU(0.7),
    "numbers": Of(lambda x: x * 0.1 + x / 0.3 + 1e-5),
    "products": Of(lambda x: (x @ x.mT) * 0.1 + (x / 0.7) @ x.mT),
    "clamp": Of(lambda x: torch.where(x > 0.2, x.clamp(0.1, 0.3), 0.7)),
    "interpolate": Of(lambda x: F.interpolate(x, scale_factor=1.7, mode="linear")),
}


@pytest.mark.parametrize("name", MODULES)
def test_numbers_keep_their_digits(name):
    """An epsilon, a slope, a factor that a float32 does not hold; NaN and Inf go through as in eager."""
    torch.manual_seed(0)
    module = MODULES[name].double().eval()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 1.0)
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    model = export(module, (x,), dynamic=None, verify=False).model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if name != "interpolate":  # torch writes that as a weighted mean, in which 0 times Inf is NaN
        x[0, 0, 0], x[1, 1, 1] = float("nan"), float("inf")
    with torch.no_grad():
        want = module(x).numpy()
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)
