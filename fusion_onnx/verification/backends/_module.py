"""The torch module itself, called with arrays."""

from collections.abc import Callable, Sequence
from typing import Any

from fusion_onnx.verification.backends._backend import Array, BackendError


def as_function(model: bytes, module: Any) -> Callable[..., Any]:
    """Return what takes the graph's inputs one by one; of a `Fusion`, whose tensors come as a list, make it."""
    from fusion_onnx.contract import Fusion
    from fusion_onnx.runtime import read_header

    if module is None:
        raise BackendError("it runs the module, not the file: load(model, module)")
    if not isinstance(module, Fusion):
        function: Callable[..., Any] = module
        return function
    if module.get_num():
        k = module.get_num()
    else:
        names = [info.name for info in read_header(model).inputs]
        k = len(names) - (names[-1] == "w")
    return lambda *tensors: module(list(tensors[:k]), *tensors[k:])


def call(function: Callable[..., Any], inputs: Sequence[Array]) -> list[Array]:
    """Return the output tensors, in the order in which they lie in what the function returns."""
    import torch
    from torch.utils import _pytree as pytree

    with torch.no_grad():
        outputs = function(*(torch.tensor(array) for array in inputs))
    return [leaf.detach().cpu().numpy() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
