"""Which fusions a module has, and what eager execution gives to each and gets from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion_onnx.contract import Fusion, FusionLayer
from fusion_onnx.contract.fusion import WrittenFusion
from fusion_onnx.verification.eval_mode import EvalMode
from fusion_onnx.verification.operator_mode import OperatorMode

_CASTS = ("aten::_to_copy", "aten::to", "aten::clone", "aten::detach")

Key = tuple[str, str, int]
"""Which value: ("x", name of the fusion's node, input), ("w", name, 0), ("y", output, i) or ("any", "", i)."""


@dataclass(frozen=True)
class Call:
    """One call of a fusion, as its node sees it: after preprocessing and before postprocessing.

    name: what its node is called; path: the fusion's in the module; written: the fusion, in a form. xs: k tensors
    (..., n_i); w: (l,) or None.
    """

    name: str
    path: str
    written: WrittenFusion
    xs: list[Tensor]
    w: Tensor | None
    buffers: list[Tensor]
    y: Tensor

    @property
    def fusion(self) -> Fusion:
        """The fusion, in whatever form the model has it."""
        return self.written.fusion

    @property
    def parameters(self) -> list[tuple[str, Tensor]]:
        """The buffers and then w, with their names, as the node takes them after its inputs."""
        names = list(self.fusion.signature.buffers)
        return [*zip(names, self.buffers, strict=True), *([] if self.w is None else [("w", self.w)])]


@dataclass
class Trace:
    """One run of a module: its fusions' calls by their nodes' names, every floating value on the way, its outputs."""

    calls: dict[str, Call] = field(default_factory=dict)
    operators: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def keyed(self) -> Iterator[tuple[Key, Tensor]]:
        """Give every value with its key."""
        for name, call in self.calls.items():
            yield from ((("x", name, i), x) for i, x in enumerate(call.xs))
            if call.w is not None:
                yield ("w", name, 0), call.w
        yield from ((("y", "", i), y) for i, y in enumerate(self.outputs))
        yield from ((("any", "", i), value) for i, value in enumerate(self.values))


def numbered(name: str, counts: dict[str, int]) -> str:
    """Return a name for one more node: the same again is called `name_2`, ... `counts` keeps how many there are."""
    counts[name] = counts.get(name, 0) + 1
    return name if counts[name] == 1 else f"{name}_{counts[name]}"


class _Tracer(OperatorMode):
    """Keeps a copy of every floating tensor that an operator returns, but for what casts and copies return."""

    def __init__(self, into: Trace) -> None:
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


def traced(run: EvalMode, args: tuple[Any, ...]) -> Trace:
    """Run a module and return what passed through it; its hooks are gone afterwards. Raises what the module does."""
    trace, counts = Trace(), dict[str, int]()
    tracer = _Tracer(trace)
    paths = fusion_paths(run.module)

    def hook(fusion: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        if tracer.paused:
            return
        tracer.paused = True  # what is computed here once more is no value of the module's
        try:
            call = _traced_call(fusion, paths[fusion], counts, *args, **kwargs)
            trace.calls[call.name] = call
        finally:
            tracer.paused = False

    hooks = [fusion.register_forward_hook(hook, with_kwargs=True) for fusion in paths]
    try:
        with torch.no_grad(), tracer:
            outputs = run.outputs(args)
    finally:
        for handle in hooks:
            handle.remove()
    trace.outputs = [y.detach().clone() for y in outputs]
    return trace


def fusion_paths(module: torch.nn.Module) -> dict[Fusion, str]:
    """Return each fusion that is exported as a node, with its path: its FusionLayer's where one owns it.

    One with a `forward` of its own is left out: what its node gets is not what it is called with.
    """
    modules = dict(module.named_modules())
    paths: dict[Fusion, str] = {}
    for path, part in modules.items():
        if not isinstance(part, Fusion) or "forward" in part.__dict__:
            continue
        if part.signature.config is not None:
            owner = path.rpartition(".")[0]
            paths[part] = owner if path and isinstance(modules.get(owner), FusionLayer) else path
    return paths


def _traced_call(fusion: Fusion, path: str, counts: dict[str, int], x: Any, w: Any = None, device: str = "cpu") -> Call:
    xs, w, buffers = fusion.operands(x, w)
    y = fusion.evaluate(xs, w, buffers)
    path = path or fusion.strategy()
    name = numbered(path, counts)
    operands = [t.detach().clone() for t in xs], None if w is None else w.detach().clone()
    return Call(name, path, fusion.in_form(), *operands, [b.detach().clone() for b in buffers], y.detach().clone())
