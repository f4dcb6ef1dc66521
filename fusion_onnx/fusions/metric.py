"""Metric: y[e] = metric(x_1[e], ..., x_k[e]) for any reduction of k numbers to one.

A metric given by name is one of the entrywise strategies of this folder, and is exported with that strategy's body.
One given as a callable is exported as the ordinary operators that it consists of: it is called with a tensor (N, k),
a row for every entry, and reduces the last axis, as in `lambda v: v.logsumexp(-1)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, Case, Form, FusionError, callables
from fusion_onnx.contract.fusion import WrittenFusion
from fusion_onnx.fusions import _folder
from fusion_onnx.fusions._entrywise import EntrywiseFusion


class MetricFusion(EntrywiseFusion):
    """A reduction over k tensors (..., n) of one shape; n = n_1, l = 0.

    Args:
        dims: the input widths, all equal; may be left out.
        metric: the name of an entrywise strategy without parameters ("max", "median", "l2_norm", ...), a name given to
            `fusion_onnx.register_function`, or a callable that takes (N, k) to (N,).
    """

    formula = "metric(x_1, ..., x_k)"
    tinybig = ("metric_fusion",)
    bench_options = {"metric": "l2_norm"}
    cases = (
        Case(dims=(8, 8), metric="max"),
        Case(dims=(5, 5, 5), metric="median"),
        Case(dims=(4,) * 6, metric="l2_norm"),
        Case(dims=(3,), metric="mean"),
    )

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        *,
        metric: str | Callable[[Tensor], Tensor] = "mean",
        **base: Any,
    ) -> None:
        super().__init__(dims, **base)
        self.metric = metric
        self._reductions: tuple[EntrywiseFusion, ...] = ()  # in a tuple: it is no submodule of this one
        if isinstance(metric, torch.nn.Module):
            raise FusionError("a metric is a function without state; a module goes into a forward of your own.")
        if isinstance(metric, str):
            self._reductions = _reduction(metric)
            if self._reductions:
                self.selects_only = self._reductions[0].selects_only  # type: ignore[misc]  # the reduction decides, not the class
                self.bitwise = self._reductions[0].bitwise  # type: ignore[misc]
            else:
                self.metric = callables.lookup(metric)
        if not isinstance(self.metric, str) and (not callable(self.metric) or isinstance(self.metric, type)):
            raise FusionError(f"a metric is a name or a function from (N, k) to (N,); got {metric!r}.")

    def to_config(self) -> dict[str, Any]:
        """Return the fusion as plain data; a callable metric goes in by its registered name."""
        config = super().to_config()
        if callable(self.metric):
            config["function_parameters"]["metric"] = callables.to_config(self.metric)["function_class"]
        return config

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        if self._reductions:
            return self._reductions[0].fuse(xs, w)
        assert callable(self.metric)
        values = torch.stack(list(xs), dim=-1)
        y = self.metric(values.reshape(-1, len(xs)))
        if not isinstance(y, Tensor) or y.ndim != 1:
            result = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise FusionError(
                f"{self.name}: the metric reduces (N, k) to (N,); it returned {result}. Reduce the last axis."
            )
        return y.reshape(xs[0].shape)

    def reference(self, xs: Sequence[Array], w: Array | None) -> Array:
        if self._reductions:
            return self._reductions[0].reference(xs, w)
        assert callable(self.metric)  # it is its own definition
        values = np.stack(xs, axis=-1)
        y: Array = self.metric(torch.from_numpy(values.reshape(-1, len(xs)))).numpy()
        return y.reshape(xs[0].shape)

    def error_bound(
        self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor
    ) -> Tensor | None:
        return self._reductions[0].error_bound(arithmetic, xs, w) if self._reductions else None

    def forms(self) -> dict[str, Form]:
        """Return the forms of the reduction that the name stands for."""
        return self._reductions[0].forms() if self._reductions else super().forms()

    def coefficients(self, k: int, w: Tensor | None, *buffers: Tensor) -> Tensor | None:
        """Return those of the reduction."""
        return self._reductions[0].coefficients(k, w) if self._reductions else None

    def in_form(self, name: str = "") -> WrittenFusion:
        """Return the reduction's form, as this fusion's own."""
        return replace(self._reductions[0].in_form(name), fusion=self) if self._reductions else super().in_form(name)

    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        return self._reductions[0].decompose(op, xs, w)  # a callable metric is traced and never comes here


def _reduction(name: str) -> tuple[EntrywiseFusion, ...]:
    """Return the named entrywise strategy, nothing where the name was registered by the caller."""
    if name in _folder.names() and name != "metric":
        cls = _folder.load(name)
        if issubclass(cls, EntrywiseFusion) and cls.parameter_free:
            return (cls(),)
    try:
        callables.lookup(name)
    except FusionError:
        classes = {n: _folder.load(n) for n in _folder.names() if n != "metric"}
        names = [n for n, cls in classes.items() if issubclass(cls, EntrywiseFusion) and cls.parameter_free]
        raise FusionError(
            f"unknown metric {name!r}; known are {', '.join(names)}, "
            "a name given to fusion_onnx.register_function, or a callable from (N, k) to (N,)."
        ) from None
    return ()
