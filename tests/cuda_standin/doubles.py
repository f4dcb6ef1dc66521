"""Tensors of torch that say they lie on a GPU, for a torch without CUDA: on the stand-in all memory is the host's."""

import ctypes
from typing import Any

import torch

CPU, CUDA = 1, 2
"""DLPack's numbers of the kinds of device."""


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Tensor(ctypes.Structure):
    """The start of DLPack's `DLManagedTensor`."""

    _fields_ = [("data", ctypes.c_void_p), ("device", _Device)]


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.POINTER(_Tensor), [ctypes.py_object, ctypes.c_char_p]


def _moved(capsule: Any, kind: int, number: int) -> Any:
    """Return the capsule, which says another device."""
    _pointer_of(capsule, b"dltensor").contents.device = _Device(kind, number)
    return capsule


class OnDevice(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU, to Python and by DLPack."""

    number = 0
    is_cpu = False

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.number)

    def __dlpack__(self, **options: Any) -> Any:
        return _moved(self.as_subclass(torch.Tensor).__dlpack__(), CUDA, self.number)


class OnSecondDevice(OnDevice):
    """One on the second GPU."""

    number = 1


class Stream:
    """torch's stream of a device, on which there is nothing to wait for."""

    def synchronize(self) -> None:
        pass


def from_dlpack(value: Any) -> torch.Tensor:
    """Do as torch.from_dlpack does, with tensors of a GPU too."""
    capsule = value.__dlpack__()
    device = _pointer_of(capsule, b"dltensor").contents.device
    kind, number = device.kind, device.number
    tensor = torch.utils.dlpack.from_dlpack(_moved(capsule, CPU, 0))
    return tensor if kind == CPU else tensor.as_subclass([OnDevice, OnSecondDevice][number])
