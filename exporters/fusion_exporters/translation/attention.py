"""Attention in plain operators, with eager's numbers where a query has no valid key, and where something is NaN.

torch's own translation of `scaled_dot_product_attention` gives such a query the mean of the values, or NaN, and turns
every other NaN under a boolean mask into 0. The Attention operator of opset 23 refuses masks that broadcast over the
queries, and ONNX Runtime has no kernel for it at the newest opsets.
"""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

from fusion_exporters.errors import ExportError

op: Any = opset18  # its types are of tensors; here it takes what torch.onnx.export traces


def translations() -> dict[Any, Any]:
    """Return the table that torch.onnx.export takes: attention as this file writes it."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Write softmax(scale · query keyᵀ + mask) value, the softmax over the keys.

    Shapes: query (..., L, E), key (..., S, E), value (..., S, V); mask broadcasts to (..., L, S).
    """
    if dropout_p:
        raise ExportError(
            f"scaled_dot_product_attention drops at random in eval mode too, dropout_p={dropout_p}; "
            "pass dropout_p only where self.training is true."
        )
    *batch, last, features = range(len(key.shape))
    if enable_gqa:
        key, value = (_repeat_heads(x, query) for x in (key, value))
    scores = op.MatMul(op.Mul(query, _scale(query, scale)), op.Transpose(key, perm=[*batch, features, last]))
    if is_causal:
        return op.MatMul(op.Softmax(op.Add(scores, _causal(query, key)), axis=-1), value)
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    mask, keep = _mask(attn_mask, query)
    return op.MatMul(op.Mul(op.Softmax(op.Add(scores, mask), axis=-1), keep), value)


def _constant(number: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(number, dtype=like.dtype))


def _mask(mask: Any, query: Any) -> tuple[Any, Any]:
    """Return what is added to the scores, and what the weights are multiplied with: 0 for a query without a valid key.

    Such a query's −∞ are raised to 0, for the softmax of −∞ alone is NaN. What is NaN stays NaN in both.
    """
    zero, lowest = _constant(0.0, query), _constant(-math.inf, query)
    if not len(mask.shape):
        mask = op.Unsqueeze(mask, [0])
    if mask.dtype == ir.DataType.BOOL:
        mask = op.Where(mask, zero, lowest)
    elif mask.dtype != query.dtype:
        mask = op.CastLike(mask, query)
    empty = op.Equal(op.ReduceMax(mask, [-1]), lowest)
    return op.Max(mask, op.Where(empty, zero, lowest)), op.Where(empty, zero, _constant(1.0, query))


def _scale(query: Any, scale: float | None) -> Any:
    """Return the number that the products are multiplied with, by default 1 / √E."""
    features = query.shape[-1]
    if scale is None and not isinstance(features, int):
        return op.Reciprocal(op.Sqrt(op.Cast(op.Shape(query, start=-1), to=query.dtype)))
    number = 1 / math.sqrt(max(features, 1)) if scale is None else scale
    if query.dtype == ir.DataType.DOUBLE and isinstance(features, int):
        # one number for each feature: ONNX Runtime rounds a single one to float32 when it merges it into the product
        return op.Constant(value=ir.tensor(np.full(features, number)))
    return _constant(number, query)


def _causal(query: Any, key: Any) -> Any:
    """Return (L, S): 0 where the key is not behind the query, else −∞. Every query has the first key."""
    zero, one = (op.Constant(value_int=number) for number in (0, 1))
    rows, columns = (op.Range(zero, op.Squeeze(op.Shape(x, start=-2, end=-1)), one) for x in (query, key))
    return op.Where(op.Less(op.Unsqueeze(rows, [1]), columns), _constant(-math.inf, query), _constant(0.0, query))


def _repeat_heads(x: Any, query: Any) -> Any:
    """Return keys or values with each head as often as there are queries' heads to share it."""
    key_heads, query_heads = x.shape[-3], query.shape[-3]
    if not isinstance(key_heads, int) or not isinstance(query_heads, int):
        raise ExportError("attention with enable_gqa has numbers of heads that are not dynamic.")
    index = np.repeat(np.arange(key_heads), query_heads // key_heads)
    return x if key_heads == query_heads else op.Gather(x, op.Constant(value=ir.tensor(index)), axis=len(x.shape) - 3)
