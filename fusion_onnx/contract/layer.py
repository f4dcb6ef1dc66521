"""`FusionLayer`, a module that owns a fusion's trainable parameters, and `Isolated`, one call of a fusion by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_onnx.contract.fusion import Fusion
from fusion_onnx.errors import FusionError


def bare_fusion(module: torch.nn.Module) -> Fusion | None:
    """Return the fusion where a module is one, or a layer of one, and nothing else runs when it is called."""
    if type(module) is not FusionLayer:
        return module if isinstance(module, Fusion) and module.is_bare() else None
    own = "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    return module.fusion if module.fusion.is_bare() and not own else None


class FusionLayer(torch.nn.Module):
    """A fusion together with its parameters `w`, an nn.Parameter of shape (1, l); none where l = 0.

    Called as `layer([x1, ..., xk])`, or `layer(x1, ..., xk)`. Training starts from `fusion.reset_parameters`: weights
    of a sum at 1/k, matrices as torch.nn.Linear has them. `init` overrides it: a tensor of l values, or a function
    that fills `w` in place (any of torch.nn.init).

    Raises FusionError where `fusion` is not one, or `init` has not l values.

    >>> layer = FusionLayer(fusion_onnx.create("low_rank_concatenation", dims=[4, 6], n=5, r=2))
    >>> layer(x1, x2).shape
    torch.Size([8, 5])
    """

    w: torch.nn.Parameter | None

    def __init__(self, fusion: Fusion, init: Tensor | Sequence[float] | Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        if not isinstance(fusion, Fusion):
            raise FusionError(f"FusionLayer owns the parameters of a Fusion; got {type(fusion).__name__}.")
        self.fusion = fusion
        length = fusion.calculate_l()
        self.w = torch.nn.Parameter(torch.empty(1, length, device=fusion.device)) if length else None
        self.reset_parameters(init)

    def reset_parameters(self, init: Tensor | Sequence[float] | Callable[[Tensor], Any] | None = None) -> None:
        """Set `w` to the start of training, or to `init`."""
        if self.w is None:
            return
        if init is None:
            self.fusion.reset_parameters(self.w)
        elif callable(init) and not isinstance(init, Tensor):
            with torch.no_grad():
                init(self.w)
        else:
            values = torch.as_tensor(init, dtype=self.w.dtype, device=self.w.device).reshape(1, -1)
            if values.shape != self.w.shape:
                raise FusionError(f"init has l = {self.w.numel()} values; got {values.numel()}.")
            with torch.no_grad():
                self.w.copy_(values)

    def extra_repr(self) -> str:
        """Show l, in `print(model)`."""
        return f"l={0 if self.w is None else self.w.numel()}"

    def forward(self, *x: Any) -> Tensor:
        """Fuse k tensors (..., n_i), given as one list or one by one, into one (..., n)."""
        inputs = x[0] if len(x) == 1 and isinstance(x[0], (list, tuple)) else x
        fused: Tensor = self.fusion(inputs, self.w)
        return fused


class Isolated(torch.nn.Module):
    """One call of a fusion's torch op by itself, its parameters constant, as they are in a trained network."""

    def __init__(self, fusion: Fusion, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.op, self.config, self.forms = fusion.signature.op, str(fusion.signature.config), fusion.forms
        for i, parameter in enumerate(parameters):
            self.register_buffer(f"p{i}", parameter)

    def forward(self, *xs: Tensor) -> Tensor:
        """Fuse k tensors (..., n_i) into one (..., n)."""
        fused: Tensor = self.op(list(xs), list(self.buffers()), self.config)
        return fused
