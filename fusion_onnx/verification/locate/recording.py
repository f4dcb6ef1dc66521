"""What eager execution gives to each fusion and gets from it, and how far each of these values is from float64."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.contract import Fusion
from fusion_onnx.layer import FusionLayer
from fusion_onnx.verification.arguments import call
from fusion_onnx.verification.repeatable import Repeatable
from fusion_onnx.verification.shadow import LARGER, Shadows
from fusion_onnx.verification.tolerance import FACTOR, Array, array, unit
from fusion_onnx.verification.watching import Watching

RUNS = 4
"""Shadows of every value are held at once: few."""
_CASTS = ("aten::_to_copy", "aten::to", "aten::clone", "aten::detach")

Key = tuple[str, str, int]
"""Which value: ("x", name of the fusion's node, input), ("w", name, 0), ("y", output, i) or ("any", "", i)."""


@dataclass(frozen=True)
class Call:
    """One call of a fusion, as its node sees it: after preprocessing and before postprocessing.

    name: what its node is called; path: the fusion's in the module. xs: k tensors (..., n_i); w: (l,) or None.
    """

    name: str
    path: str
    fusion: Fusion
    xs: list[Tensor]
    w: Tensor | None
    buffers: list[Tensor]
    y: Tensor

    @property
    def parameters(self) -> list[tuple[str, Tensor]]:
        """The buffers and then w, with their names, as the node takes them after its inputs."""
        names = list(self.fusion._buffer_names)
        return [*zip(names, self.buffers, strict=True), *([] if self.w is None else [("w", self.w)])]


@dataclass
class Recording:
    """One run of a module: its fusions' calls by their nodes' names, every floating value on the way, its outputs."""

    calls: dict[str, Call] = field(default_factory=dict)
    operators: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def keyed(self) -> Iterator[tuple[Key, Tensor]]:
        """Give every value with its key."""
        for name, seen in self.calls.items():
            yield from ((("x", name, i), x) for i, x in enumerate(seen.xs))
            if seen.w is not None:
                yield ("w", name, 0), seen.w
        yield from ((("y", "", i), y) for i, y in enumerate(self.outputs))
        yield from ((("any", "", i), value) for i, value in enumerate(self.values))


class _Watch(Watching):
    """Keeps a copy of every floating tensor that an operator returns, but for what casts and copies return."""

    def __init__(self, into: Recording) -> None:
        super().__init__()
        self.into, self.paused = into, False

    def operator(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        name = func._schema.name
        if not self.paused and name not in _CASTS:
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
                    self.into.operators.append(name)
                    self.into.values.append(leaf.detach().clone())
        return result


def record(run: Repeatable, args: tuple[Any, ...]) -> Recording:
    """Run a module and return what passed through it; its hooks are gone afterwards. Raises what the module does."""
    recording, taken = Recording(), dict[str, int]()
    watch = _Watch(recording)
    paths = fusion_paths(run.module)

    def hook(fusion: Any, given: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        if watch.paused:
            return
        watch.paused = True  # what is computed here once more is no value of the module's
        try:
            call = _seen(fusion, paths[fusion], taken, *given, **named)
            recording.calls[call.name] = call
        finally:
            watch.paused = False

    hooks = [fusion.register_forward_hook(hook, with_kwargs=True) for fusion in paths]
    try:
        with torch.no_grad(), watch:
            outputs = call(run, args)
    finally:
        for handle in hooks:
            handle.remove()
    recording.outputs = [leaf.detach().clone() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return recording


def fusion_paths(module: torch.nn.Module) -> dict[Fusion, str]:
    """Return each fusion that is exported as a node, with its path: its FusionLayer's where one owns it.

    One with a `forward` of its own is left out: what its node gets is not what it is called with.
    """
    modules = dict(module.named_modules())
    paths: dict[Fusion, str] = {}
    for path, part in modules.items():
        if not isinstance(part, Fusion) or "forward" in part.__dict__:
            continue
        if part.is_strategy() and part._record is not None:
            owner = path.rpartition(".")[0]
            paths[part] = owner if path and isinstance(modules.get(owner), FusionLayer) else path
    return paths


def _seen(fusion: Fusion, path: str, taken: dict[str, int], x: Any, w: Any = None, device: str = "cpu") -> Call:
    xs, w, buffers = fusion._operands(x, w)
    y = fusion._evaluate(xs, w, buffers)
    path = path or fusion.strategy()
    taken[path] = taken.get(path, 0) + 1
    name = path if taken[path] == 1 else f"{path}_{taken[path]}"
    kept = [t.detach().clone() for t in xs], None if w is None else w.detach().clone()
    return Call(name, path, fusion, *kept, [b.detach().clone() for b in buffers], y.detach().clone())


class Noise:
    """How far rounding may put each value of eager execution off: the largest over all runs it was given."""

    def __init__(self, run: Repeatable) -> None:
        self._run = run
        self._measured: dict[Key, float] = {}
        self._overflowed: set[Key] = set()

    def measure(self, args: tuple[Any, ...], eager: Recording) -> None:
        """Take one run into account; a run that cannot be followed in float64 is left out."""
        larger = LARGER if _any_double(eager) else 1.0
        parameters = [*self._run.module.parameters(), *self._run.module.buffers()]
        shadows = Shadows(RUNS, shared=parameters, larger=larger)
        try:
            with shadows:
                again = record(self._run, args)
        except Exception:  # whatever a module that was not made for float64 may raise
            return
        aligned = eager.operators == again.operators
        others = dict(again.keyed())
        for key, value in eager.keyed():
            other = others.get(key)
            if other is None or other.shape != value.shape or (key[0] == "any" and not aligned):
                continue
            exact, spread = array(shadows.of(other)[0]), array(shadows.spread(other))
            with np.errstate(invalid="ignore"):  # inf - inf
                off = np.abs(array(value) - exact) if value.dtype != torch.float64 else np.zeros_like(exact)
            known = np.isfinite(exact) & np.isfinite(spread) & np.isfinite(off)
            if not known.all() and np.isfinite(array(value)[~known]).any():
                self._overflowed.add(key)  # float32 did, where float64 does not, so it says nothing of float64's error
            most = float(np.maximum(off, spread)[known].max(initial=0.0))
            self._measured[key] = max(self._measured.get(key, 0.0), most)

    def allowed(self, key: Key, value: Tensor) -> Array:
        """Return what the model's value may differ by, entry by entry: 8 × the distance, + 4 u |y|."""
        return allowed(value, None if key in self._overflowed else self._measured.get(key))


def allowed(value: Tensor, distance: float | None) -> Array:
    """Return 8 × the distance + 4 u |y|, entry by entry; without one, 256 u max |y|."""
    size = np.abs(array(value))
    size = np.where(np.isfinite(size), size, 0.0)
    if distance is None:
        return np.full_like(size, 256 * unit(value.dtype) * (size.max() if size.size else 0.0))
    return np.asarray(FACTOR * distance + 4 * unit(value.dtype) * size)


def dtype_of(value: Any) -> str:
    """Return a tensor's or an array's dtype by the name that both share."""
    return str(value.dtype).removeprefix("torch.")


def _any_double(recording: Recording) -> bool:
    return any(value.dtype == torch.float64 for _, value in recording.keyed())
