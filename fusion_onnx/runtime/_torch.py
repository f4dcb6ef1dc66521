"""All that touches torch. It never imports torch, but looks it up: a caller who has tensors has imported it."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._errors import InputError


def is_tensor(value: Any) -> bool:
    """Return whether this is a torch tensor."""
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor_type is not None and isinstance(value, tensor_type)


def dtype_name(tensor: Any) -> str:
    """Return the tensor's dtype, such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def as_array(tensor: Any) -> "np.ndarray[Any, Any] | None":
    """Return the memory of a plain CPU tensor as an array, at once; None for what takes a closer look."""
    if type(tensor) is not sys.modules["torch"].Tensor or not tensor.is_cpu or tensor.requires_grad:
        return None
    try:
        return tensor.numpy()  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):  # sparse, a view that conjugates or negates, a dtype that numpy lacks
        return None


def plain(tensor: Any) -> Any:
    """Return the tensor as plain memory, a view if possible: detached, strided, contiguous, conj and neg resolved.

    Raises:
        TypeError: the tensor is sparse, or has no memory (the meta device).
    """
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided:
        raise TypeError(f"its layout is {tensor.layout}; make it dense: .to_dense()")
    if tensor.device.type == "meta":
        raise TypeError("it is on the meta device and holds no values")
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def alias(value: Any) -> Any:
    """Return a tensor that nobody else has, with the storage that this one has now; what is no tensor, as it is."""
    return value.detach() if is_tensor(value) else value


def address_reader() -> Callable[[Any], int]:
    """Return a function from a tensor to the address of its values: half the time of a method, which is looked up."""
    return sys.modules["torch"].Tensor.data_ptr  # type: ignore[no-any-return]


def keep_size(tensor: Any) -> Any:
    """Make torch refuse to resize the storage of a CPU tensor, as it does where numpy reads it; return the tensor."""
    torch = sys.modules["torch"]
    if tensor.is_cpu and tensor.is_contiguous() and tensor.numel():
        tensor.flatten().view(torch.uint8).numpy()
    return tensor


def from_arrays(outputs: Sequence[Any]) -> list[Any]:
    """Return outputs as CPU tensors that share the arrays' memory; what torch has no dtype for (strings) stays."""
    torch = sys.modules["torch"]
    return [torch.from_numpy(out) if isinstance(out, np.ndarray) and out.dtype.kind != "O" else out for out in outputs]


def run_bound(ort: Any, session: Any, feeds: dict[str, Any], outputs: Sequence[str]) -> list[Any]:
    """Run on tensors where they lie, and leave the results there: on the GPU of the inputs, else on the CPU.

    Each call makes a binding: one that threads share crashes. The tensors in ``feeds`` live until the end.

    Raises:
        InputError: the tensors lie on several devices, or on one that ONNX Runtime cannot read.
    """
    torch = sys.modules["torch"]
    devices = {value.device for value in feeds.values() if is_tensor(value) and value.device.type != "cpu"}
    if len(devices) > 1:
        raise InputError(f"inputs lie on several devices: {', '.join(sorted(map(str, devices)))}; use one")
    device = devices.pop() if devices else torch.device("cpu")
    binding = session.io_binding()
    for name, value in feeds.items():
        if is_tensor(value):
            binding.bind_ortvalue_input(name, ort_value(ort, name, value))
        else:
            binding.bind_cpu_input(name, value)
    for name in outputs:
        binding.bind_output(name, device.type, device.index or 0)
    if device.type == "cuda":
        # ONNX Runtime works on a stream of its own, which does not wait for the kernels that still write the inputs
        torch.cuda.current_stream(device).synchronize()
        if not all(is_tensor(value) and value.device == device for value in feeds.values()):
            binding.synchronize_inputs()  # nor, as documented, for the copies of those that lie on the host
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return [_from_ort_value(torch, value) for value in binding.get_outputs()]


class _BoolAsBytes:
    """DLPack's own bool is unknown to ONNX Runtime's reader; it takes bytes from an object whose dtype says bool."""

    dtype = np.dtype(bool)

    def __init__(self, tensor: Any) -> None:
        self._bytes = tensor.view(sys.modules["torch"].uint8)

    def __dlpack__(self) -> Any:
        return self._bytes.__dlpack__()


def ort_value(ort: Any, name: str, tensor: Any) -> Any:
    """Return the tensor as ONNX Runtime sees it, in place.

    Raises:
        InputError: ONNX Runtime cannot read it there.
    """
    try:
        return ort.OrtValue.from_dlpack(_BoolAsBytes(tensor) if dtype_name(tensor) == "bool" else tensor)
    except (RuntimeError, TypeError, BufferError) as error:
        raise InputError(f"{name}: ONNX Runtime cannot read this tensor on {tensor.device}: {error}") from error


def _from_ort_value(torch: Any, value: Any) -> Any:
    if not value.is_tensor() or value.data_type() == "tensor(string)":
        return value.numpy()
    tensor = torch.from_dlpack(value)
    is_bool = value.data_type() == "tensor(bool)" and tensor.dtype is not torch.bool
    return tensor.view(torch.bool) if is_bool else tensor
