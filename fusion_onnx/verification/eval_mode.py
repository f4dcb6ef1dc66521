"""A module that can be run again and again: each run gets copies of its arguments, and what it changes is put back."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.verification.arguments import call
from fusion_onnx.verification.operator_mode import OperatorMode

_CONTAINERS = (list, dict, set)


class EvalMode:
    """A module in eval mode, as a function of its arguments alone; entered, and left as it was found.

    The first run shows which of its parameters and buffers it writes into (a counter, running statistics); these are
    put back after every run, and so are its attributes, with the lists, dicts and sets among them.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._modes: list[tuple[torch.nn.Module, bool]] = []
        self._attributes: list[_Attributes] = []
        self._written: _Written | None = None

    def __enter__(self) -> "EvalMode":
        self._modes = [(part, part.training) for part in self.module.modules()]
        with contextlib.suppress(NotImplementedError):  # a program of torch.export has the mode it was traced in
            self.module.eval()
        self._attributes = [_Attributes(part) for part, _ in self._modes]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for part, mode in self._modes:
            part.training = mode

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Run the module on copies of the arguments, without gradients; return what it returns."""
        if self._written is None:  # watched, torch may take another way, with other roundings: that run only shows
            compiler = "torch._dynamo" in sys.modules
            try:
                self._show(args, keywords)
            except Exception:
                if compiler or "torch._dynamo" not in sys.modules:
                    raise
                # a torch.cond imported the compiler, which took what watches for something to compile
                torch.compiler.reset()
                self._written = None
                self._show(args, keywords)
        with self.undone(), torch.no_grad():
            return self._freed(self.module(*copies(args), **copies(keywords)))

    def outputs(self, args: tuple[Any, ...]) -> list[Tensor]:
        """Run the module on arguments as `arguments` arranges them, and return the tensors it gives."""
        return tensors_in(call(self, args))

    def _show(self, args: Any, keywords: Any) -> None:
        with self.undone(), torch.no_grad():
            self.module(*copies(args), **copies(keywords))

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Put back what runs of the module change in it."""
        first = self._written is None
        self._written = self._written or _Written([*self.module.parameters(), *self.module.buffers()])
        try:
            with self._written.watched() if first else contextlib.nullcontext():
                yield
        finally:
            self._written.restore()
            for attributes in self._attributes:
                attributes.restore()

    def _freed(self, result: Any) -> Any:
        """Copy what lies in memory that is put back."""
        memory = self._written.places if self._written else set()
        return (
            pytree.tree_map_only(Tensor, lambda t: t.clone() if _place(t) in memory else t, result)
            if memory
            else result
        )


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in a result, in order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def copies(args: Any) -> Any:
    """Return the arguments with a copy of each tensor, laid out as the tensor is."""
    return pytree.tree_map_only(Tensor, _copy, args)


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    strided = tensor.layout is torch.strided and not tensor.is_meta
    if strided and not tensor.is_contiguous() and 0 not in tensor.stride() and tensor.numel():
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        return twin.copy_(tensor)
    return tensor.clone()


class _Attributes:
    """A module's attributes, as they were."""

    def __init__(self, part: torch.nn.Module) -> None:
        self._part = part
        self._before = {
            key: (value, value.copy() if isinstance(value, _CONTAINERS) else None)
            for key, value in part.__dict__.items()
        }

    def restore(self) -> None:
        now = self._part.__dict__
        for key in [key for key in now if key not in self._before]:
            del now[key]
        for key, (value, content) in self._before.items():
            if now.get(key) is not value:
                now[key] = value
            if content is not None and not _same(value, content):
                value.clear()
                value.extend(content) if isinstance(value, list) else value.update(content)


def _same(a: Any, b: Any) -> bool:
    """Return whether two lists, dicts or sets hold the same objects."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(i is j and a[i] is b[j] for i, j in zip(a, b, strict=True))
    return all(i is j for i, j in zip(a, b, strict=True))


class _Written:
    """The tensors of a module that it writes into; each is kept as it was before the first write."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [(t, t.detach()) for t in tensors]
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.places: set[int] = set()

    def watched(self) -> OperatorMode:
        """Return a mode in which a tensor is kept before it is written into."""
        return _Watch(self)

    def keep(self, tensor: Tensor) -> None:
        """Keep what lies in the memory of a tensor that is about to be written into, if it is the module's."""
        place = _place(tensor)
        if place in self.places:
            return
        own = [own_tensor for _, own_tensor in self._tensors if _place(own_tensor) == place]
        if own:
            self.places.add(place)
            self._copies += [(own_tensor, own_tensor.clone()) for own_tensor in own]

    def restore(self) -> None:
        with torch.inference_mode():  # else a tensor made in it could not be written
            for own_tensor, value in self._copies:
                own_tensor.copy_(value)
        for tensor, own_tensor in self._tensors:
            if _place(tensor) != _place(own_tensor):
                tensor.data = own_tensor


class _Watch(OperatorMode):
    def __init__(self, written: _Written) -> None:
        super().__init__()
        self._written = written

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[i] if i < len(args) else kwargs.get(argument.name)
                    for leaf in pytree.tree_leaves(value):
                        if isinstance(leaf, Tensor):
                            self._written.keep(leaf)
        return func(*args, **kwargs)


def _place(tensor: Tensor) -> int:
    """Return where a tensor's memory is; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, or of a kind of its own
        return 0
