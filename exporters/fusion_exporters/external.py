"""Weights in a file beside the model, for what no single message holds: one behind the other, or as safetensors."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir
import torch

from fusion_exporters.errors import ExportError
from fusion_onnx.files import vacant, written

MAX_BYTES = 2**31 - 1
SMALLEST = 1024
"""Bytes from which a tensor goes into the file: what is less may be a shape, which checkers want to see."""
_ALIGNED, _PAGE = 64, 4096
SAFETENSORS = ".safetensors"
_NAMES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.DOUBLE: "F64",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT16: "I16",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
}


def file_beside(target: Path, external_data: bool | str, *, overwrite: bool) -> Path:
    """Return the file for the weights of a model at `target`: `model.onnx.data`, or the name that is given."""
    name = f"{target.name}.data" if external_data is True else str(external_data)
    if not name or os.path.basename(name) != name or name in (target.name, ".", ".."):
        raise ExportError(f"external_data is True, or the name of a file beside the model; got {external_data!r}.")
    beside = target.with_name(name)
    vacant(beside, overwrite=overwrite)
    return beside


def refuse_too_large(module: torch.nn.Module) -> None:
    """Raise ExportError where a module's weights are more than one message holds: before they are traced."""
    memory = {t.untyped_storage().data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}
    size = sum(memory.values())
    if size > MAX_BYTES:
        raise ExportError(too_large(size, "weights"))


def too_large(size: int, what: str = "model") -> str:
    """Say that a model is too large for one file, and what to do."""
    return (
        f"the {what} take{'' if what.endswith('s') else 's'} {size:,} bytes; an ONNX file holds at most {MAX_BYTES:,}. "
        "Write the weights beside it: external_data=True, --external-data on the command line."
    )


def move_weights(model: ir.Model, file: Path) -> None:
    """Write the model's weights to a file; the model refers to it, in the folder in which it will be itself."""
    tensors = [
        (value, value.const_value)
        for value in _initializers(model)
        if value.const_value is not None and value.const_value.nbytes >= SMALLEST
    ]
    with written(file, overwrite=False) as stream:
        if file.name.endswith(SAFETENSORS):
            places = _safetensors(stream, [tensor for _, tensor in tensors])
        else:
            places = [_aligned(stream, tensor) for _, tensor in tensors]
    for (value, tensor), offset in zip(tensors, places, strict=True):
        name = str(value.name)
        value.const_value = ir.ExternalTensor(
            file.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=file.parent,
        )


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


def _aligned(stream: BinaryIO, tensor: Any) -> int:
    """Write a tensor where a page begins, so that it can be mapped into memory; a small one needs no page."""
    step = _PAGE if tensor.nbytes >= _PAGE else _ALIGNED
    stream.write(b"\0" * (-stream.tell() % step))
    place = stream.tell()
    tensor.tofile(stream)
    return place


def _safetensors(stream: BinaryIO, tensors: list[Any]) -> list[int]:
    """Write the tensors as safetensors has it: the length of a header, the header, one tensor behind the other."""
    tensors_by_size = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # so that each is aligned
    header, end = dict[str, object](), 0
    begins: dict[int, int] = {}
    for tensor in tensors_by_size:
        if tensor.dtype not in _NAMES:
            raise ExportError(f"safetensors has no {tensor.dtype.name}, which {tensor.name} is; give another name.")
        begins[id(tensor)] = end
        header[str(tensor.name)] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": [int(size) for size in tensor.shape.numpy()],
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors_by_size:
        tensor.tofile(stream)
    return [8 + len(text) + begins[id(tensor)] for tensor in tensors]
