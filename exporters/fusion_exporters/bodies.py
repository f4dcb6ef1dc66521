"""A fusion's decomposition as an ONNX function: traced once, named after all that its operators depend on."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tensor_adapters
from onnxscript import build_function
from onnxscript._internal.builder import OpBuilder, make_value

from fusion_exporters.errors import ExportError
from fusion_onnx.contract import Fusion
from fusion_onnx.contract.fusion import WrittenFusion
from fusion_onnx.file_format import DOMAIN


class NotOffered(ExportError):
    """A form that has nothing to offer for these inputs."""


class Operators:
    """What `decompose` gets as `op`: `op.Add(x, y)` adds a node; `rank` and `constant` tell what it works on."""

    def __init__(self, builder: OpBuilder, rank: int, dtype: ir.DataType) -> None:
        self._builder = builder
        self._rank = rank
        self.dtype = dtype
        self.rank_used = False

    @property
    def rank(self) -> int:
        """The inputs' number of axes. A body that asks for it is valid for this rank only, and so named."""
        self.rank_used = True
        return self._rank

    def constant(self, value: Any) -> ir.Value:
        """Return numbers as a constant of the type that is computed in."""
        return self._tensor(np.asarray(value, dtype=self.dtype.numpy()))

    def integers(self, values: Sequence[int]) -> ir.Value:
        """Return whole numbers (shapes, sizes, axes) as a constant."""
        return self._tensor(np.asarray(values, dtype=np.int64))

    def _tensor(self, array: Any) -> ir.Value:
        value: ir.Value = self._builder.Constant(value=ir.tensor(array))
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)


def build_body(
    written: WrittenFusion, inputs: Sequence[ir.Value], count: int, buffers: Sequence[str], opset: int
) -> ir.Function:
    """Return the ONNX function of a fusion, in a form, for a node with these inputs; the first `count` are fused.

    The function's inputs are x1 ... xk, the fusion's buffers, and w; its output is y. float16 and bfloat16 are
    computed in float32 and rounded once at the end, as eager execution does, unless the fusion does no arithmetic.
    """
    fusion, cls = written.fusion, type(written.fusion)
    if cls.inherits_decompose():
        raise ExportError(
            f"{cls.__name__}.fuse was replaced, and decompose writes the one before. Subclass {cls.__name__} instead."
        )
    first = inputs[0]
    assert first.dtype is not None and first.shape is not None
    dtype, rank = first.dtype, len(first.shape)
    wide = _computes_in(fusion, dtype)
    names = [f"x{i}" for i in range(1, count + 1)] + list(buffers)
    names += ["w"] * (len(inputs) - len(names))
    rank_used = False

    def trace(builder: OpBuilder, *values: ir.Value) -> Any:
        nonlocal rank_used
        op = Operators(builder, rank, wide)
        if wide != dtype:
            values = tuple(builder.Cast(v, to=wide.value) for v in values)
        end = count + len(buffers)
        w = values[end] if len(values) > end else None
        try:
            y = written.decompose(op, list(values[:count]), w, *values[count:end])
        except Exception as error:
            raise ExportError(f"{written.method} failed: {type(error).__name__}: {error}") from error
        if y is NotImplemented:
            raise NotOffered(f"{fusion.strategy()} has nothing to offer in the form {written.form!r} for these inputs")
        if not isinstance(y, ir.Value):
            raise ExportError(
                f"{written.method} returns one value, what an operator gave, as in op.Add(x, y); "
                f"got {type(y).__name__}. Numbers go in as op.constant(2)."
            )
        if wide != dtype:
            y = builder.Cast(y, to=dtype.value)
        elif any(y is v for v in values):
            y = builder.Identity(y)
        rank_used = op.rank_used
        return y

    formal = [make_value(name, _typed(v)) for name, v in zip(names, inputs, strict=True)]
    body: ir.Function = build_function(
        trace,
        formal,
        domain=DOMAIN,
        name=fusion.strategy(),
        attributes=[ir.Attr("config", ir.AttributeType.STRING, None)],
        opset_imports={"": opset},
    )
    body.name = function_name(written, count, dtype, rank if rank_used else None)
    _tidy(body)
    return body


def function_name(written: WrittenFusion, count: int, dtype: ir.DataType, rank: int | None) -> str:
    """Return a name that carries all that a body depends on: strategy, form, widths or k, options, dtype, rank.

    `median_k3`, `low_rank_concatenation_4_6_2_n5_r2`, `sum_variadic_k9_float16`, `mean_k2_float64`.
    """
    fusion = written.fusion
    options = fusion.signature.options
    dims = options.pop("dims", None)
    parts = [fusion.strategy(), *([] if written.is_default else [written.form])]
    parts += [str(d) for d in dims] if fusion.needs_dims and dims and count <= 8 else [f"k{count}"]
    if fusion.needs_dims and dims and count > 8:
        parts.append("d" + digest(dims))
    defaults = {name: parameter.default for name, parameter in fusion.options().items()}
    for key, value in options.items():
        if isinstance(value, bool):
            parts += [] if value == defaults[key] else [key if value else f"no_{key}"]
        elif isinstance(value, int) and value >= 0:
            parts.append(f"{key}{value}")
        elif value != defaults[key]:
            plain = isinstance(value, str) and value.isidentifier()
            parts.append(f"{key}_{value if plain else digest(value)}")
    if dtype != ir.DataType.FLOAT:
        parts.append({"DOUBLE": "float64"}.get(dtype.name, dtype.name.lower()))
    if rank is not None and rank != 2:
        parts.append(f"rank{rank}")
    return re.sub(r"\W", "_", "_".join(parts))


def digest(value: Any) -> str:
    """Return eight hexadecimal digits that tell this plain data from other."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _computes_in(fusion: Fusion, dtype: ir.DataType) -> ir.DataType:
    """Return the type in which a fusion's body computes."""
    return tensor_adapters.from_torch_dtype(fusion.computes_in(tensor_adapters.to_torch_dtype(dtype)))


def _typed(value: ir.Value) -> ir.TypeAndShape:
    """Return the type without the shape: a body serves every batch size."""
    assert value.dtype is not None
    return ir.TypeAndShape(ir.TensorType(value.dtype), None)


def _tidy(body: ir.Function) -> None:
    """Name nodes and values by what they do, so that profiles and Netron can be read."""
    counts: dict[str, int] = {}
    inputs = {id(v) for v in body.inputs}
    for node in body:
        operator = node.op_type.lower()
        counts[operator] = counts.get(operator, 0) + 1
        node.name = f"{operator}_{counts[operator]}"
        node.metadata_props.clear()
        for i, value in enumerate(node.outputs):
            if id(value) not in inputs:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}_{i + 1}"
            value.metadata_props.clear()
            value.shape = None
    if body.outputs and id(body.outputs[0]) not in inputs:
        body.outputs[0].name = "y"
