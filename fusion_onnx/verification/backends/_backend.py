"""What a runtime gives: one class, derived from `Backend`, in a file of this folder."""

import abc
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]


class BackendError(RuntimeError):
    """A runtime did not load or run a model; the text is the runtime's own, shortened."""


class MissingBackend(BackendError):
    """A runtime cannot start here; the text says why, and what helps."""


class Backend(abc.ABC):
    """A model, loaded in one runtime.

    Args:
        model: the bytes of an ONNX file; of a file without functions where `inlined` says so.
        module: what was exported, for the runtimes that are `from_module`: a callable that takes the graph's inputs
            as tensors, one by one in their order. A `Fusion` is taken as it is.
    """

    title: ClassVar[str]
    """What a person calls it, such as "ONNX Runtime, CPU provider"."""
    install: ClassVar[str]
    """The command that brings it."""
    inlined: ClassVar[bool] = False
    """Whether it takes only files without model-local functions; they are inlined before it sees them."""
    from_module: ClassVar[bool] = False
    """Whether it runs the torch module and not the file; then it runs in this process."""
    isolated: ClassVar[bool] = True
    """Whether it runs in a child process, where it can crash, hang and set the processor's modes at will."""
    bitwise: ClassVar[bool] = False
    """Whether it computes in IEEE arithmetic, operator by operator and in the graph's order, subnormals included."""

    @abc.abstractmethod
    def __init__(self, model: bytes, module: Any = None) -> None: ...

    @abc.abstractmethod
    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute the outputs, in the graph's order, from inputs in the graph's order."""

    @classmethod
    @abc.abstractmethod
    def missing(cls) -> str:
        """Say why it cannot start here and what helps; "" where it can. Imports nothing that could do harm."""

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str:
        """Say which version is installed; "" where none is."""


def lacks(cls: type[Backend], *modules: str) -> str:
    """Say which of the modules a runtime needs are not installed, and the command that brings them; "" if none."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed: {cls.install}" if absent else ""


def version_of(*distributions: str) -> str:
    """Return the version of the first of these distributions that is installed; "" where none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
