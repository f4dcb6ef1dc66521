"""Read a model's header in Python, before any C++ sees the file.

Weights are stepped over, so a file of many gigabytes costs its nodes only.
"""

import contextlib
import mmap
import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from ._errors import SessionError
from ._types import TensorInfo, dtype_of_onnx
from ._wire import (
    ATTRIBUTE_G,
    ATTRIBUTE_GRAPHS,
    ATTRIBUTE_T,
    ATTRIBUTE_TENSORS,
    DIMENSION_DIM_PARAM,
    DIMENSION_DIM_VALUE,
    FUNCTION_DOMAIN,
    FUNCTION_INPUT,
    FUNCTION_NAME,
    FUNCTION_NODE,
    FUNCTION_OVERLOAD,
    GRAPH_INITIALIZER,
    GRAPH_INPUT,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    GRAPH_SPARSE_INITIALIZER,
    MODEL_FUNCTIONS,
    MODEL_GRAPH,
    MODEL_IR_VERSION,
    MODEL_METADATA_PROPS,
    MODEL_OPSET_IMPORT,
    MODEL_PRODUCER_NAME,
    MODEL_PRODUCER_VERSION,
    NODE_ATTRIBUTE,
    NODE_DOMAIN,
    NODE_INPUT,
    NODE_OP_TYPE,
    OPERATOR_SET_ID_DOMAIN,
    OPERATOR_SET_ID_VERSION,
    SHAPE_DIM,
    SPARSE_TENSOR_INDICES,
    SPARSE_TENSOR_VALUES,
    STRING_STRING_ENTRY_KEY,
    STRING_STRING_ENTRY_VALUE,
    TENSOR_DIMS,
    TENSOR_EXTERNAL_DATA,
    TENSOR_NAME,
    TENSOR_TYPE_ELEM_TYPE,
    TENSOR_TYPE_SHAPE,
    TYPE_MAP_TYPE,
    TYPE_OPTIONAL_TYPE,
    TYPE_SEQUENCE_TYPE,
    TYPE_SPARSE_TENSOR_TYPE,
    TYPE_TENSOR_TYPE,
    VALUE_INFO_NAME,
    VALUE_INFO_TYPE,
    Buffer,
    Message,
    WireError,
)

_MAX_DEPTH = 100  # of graphs inside nodes (If, Loop); the checker's own limit for calls
_NOT_TENSORS = {
    TYPE_SEQUENCE_TYPE: "sequence",
    TYPE_MAP_TYPE: "map",
    TYPE_SPARSE_TENSOR_TYPE: "sparse_tensor",
    TYPE_OPTIONAL_TYPE: "optional",
}
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip file, as torch.save and torch.export.save write; export it with fusion_onnx.export"),
    (b"\x80", "a Python pickle; export the module with fusion_onnx.export"),
    (b"version https://git-lfs", "a Git LFS pointer, the model itself was not fetched; run git lfs pull"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
)


class ModelHeader(NamedTuple):
    """What a model's file says about itself.

    ``inputs`` leaves out those that an initializer fills. ``ops`` counts (domain, op type) over the main graph with its
    subgraphs and the bodies of the functions; the domain of standard ONNX is "". ``functions`` lists (domain, name).
    ``external_files`` names the files beside the model that hold weights.
    """

    path: str | None
    size: int
    ir_version: int
    producer: str
    opset_imports: dict[str, int]
    metadata: dict[str, str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ops: dict[tuple[str, str], int]
    functions: tuple[tuple[str, str], ...]
    external_files: tuple[str, ...]


def read_header(model: str | os.PathLike[str] | bytes) -> ModelHeader:
    """Read the header of a model, from its path or the file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        SessionError: it is not an ONNX model; the message says what it seems to be.
    """
    with opened(model) as (buffer, path):
        return _parse(buffer, path)


def function_calls(model: str | os.PathLike[str] | bytes, domain: str) -> Iterator[tuple[Message, frozenset[int]]]:
    """Yield a domain's functions, each with the numbers of those inputs that are vectors (have one axis) in every call.

    The file says so of initializers and of the model's inputs, and a fusion's contract of `w`. A function that has
    overloads is left out.

    Raises:
        WireError: the file is malformed; `read_header` says how.
    """
    with opened(model) as (buffer, _):
        calls = _Calls(domain)
        functions: dict[str, list[Message]] = {}
        for number, part in _each(Message(buffer), MODEL_GRAPH, MODEL_FUNCTIONS):
            if number == MODEL_GRAPH:
                calls.read(part)
            elif any(text.text() == domain for _, text in _each(part, FUNCTION_DOMAIN)):
                name = next((text.text() for _, text in _each(part, FUNCTION_NAME)), "")
                functions.setdefault(name, []).append(part)
        for name, (function, *overloads) in functions.items():
            if overloads or any(text.text() for _, text in _each(function, FUNCTION_OVERLOAD)):
                continue
            formal = [text.text() for _, text in _each(function, FUNCTION_INPUT)]
            yield function, calls.vectors(name) | {i for i, text in enumerate(formal) if text == "w"}


class _Calls:
    """The inputs of a graph's calls of one domain's functions."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._vectors: set[str] = set()
        self._inputs: dict[str, list[list[str]]] = {}

    def read(self, graph: Message) -> None:
        """Take note of a graph's calls, initializers and inputs."""
        for number, part in _each(graph, GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT):
            if number == GRAPH_NODE:
                fields = list(_each(part, NODE_INPUT, NODE_OP_TYPE, NODE_DOMAIN))
                if any(n == NODE_DOMAIN and text.text() == self._domain for n, text in fields):
                    name = next((text.text() for n, text in fields if n == NODE_OP_TYPE), "")
                    self._inputs.setdefault(name, []).append([text.text() for n, text in fields if n == NODE_INPUT])
            elif number == GRAPH_INITIALIZER:
                if sum(n == TENSOR_DIMS for n, _ in part.fields()) == 1:
                    self._vectors |= {text.text() for _, text in _each(part, TENSOR_NAME)}
            elif len((info := _value_info(part)).shape or ()) == 1:
                self._vectors.add(info.name)

    def vectors(self, name: str) -> frozenset[int]:
        """Return which inputs of a function are vectors in every call."""
        calls = self._inputs.get(name, ())
        vectors = [{i for i, actual in enumerate(call) if actual in self._vectors} for call in calls]
        return frozenset(set.intersection(*vectors) if vectors else ())


@contextlib.contextmanager
def opened(model: str | os.PathLike[str] | bytes) -> Iterator[tuple[Buffer, str | None]]:
    """Open a file for reading: its bytes and its path; of a model in bytes, these and None."""
    if isinstance(model, bytes | bytearray | memoryview):
        yield bytes(model), None
        return
    path = os.fspath(model)
    mode = os.stat(path).st_mode  # before open: opening a FIFO waits for its writer
    if not stat.S_ISREG(mode):
        raise SessionError(f"{path!r} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}, not an ONNX model")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b"", path
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view, path


def _parse(buffer: Buffer, path: str | None) -> ModelHeader:
    ir_version = graph_count = 0
    producer = {MODEL_PRODUCER_NAME: "", MODEL_PRODUCER_VERSION: ""}
    opset_imports: dict[str, int] = {}
    metadata: dict[str, str] = {}
    functions: list[tuple[str, str]] = []
    contents = _Contents()
    try:
        for number, value in Message(buffer).fields():
            if number == MODEL_IR_VERSION:
                ir_version = _number(value)
            elif number in producer:
                producer[number] = _message(value).text()
            elif number == MODEL_GRAPH:
                graph_count += 1
                contents.graph(_message(value), 0)
            elif number == MODEL_OPSET_IMPORT:
                fields = dict(_message(value).fields())
                domain = _text(fields, OPERATOR_SET_ID_DOMAIN)
                opset_imports[domain] = _number(fields.get(OPERATOR_SET_ID_VERSION, 0))
            elif number == MODEL_METADATA_PROPS:
                fields = dict(_message(value).fields())
                metadata[_text(fields, STRING_STRING_ENTRY_KEY)] = _text(fields, STRING_STRING_ENTRY_VALUE)
            elif number == MODEL_FUNCTIONS:
                functions.append(contents.function(_message(value)))
    except WireError as error:
        _refuse(buffer, path, str(error))
    if not ir_version or graph_count != 1:
        _refuse(buffer, path, f"IR version {ir_version}, {graph_count} graphs")
    return ModelHeader(
        path=path,
        size=len(buffer),
        ir_version=ir_version,
        producer=" ".join(producer.values()).strip(),
        opset_imports=opset_imports,
        metadata=metadata,
        inputs=tuple(info for info in contents.inputs if info.name not in contents.initializers),
        outputs=tuple(contents.outputs),
        ops=dict(contents.ops),
        functions=tuple(functions),
        external_files=tuple(sorted(contents.external_files)),
    )


def _refuse(buffer: Buffer, path: str | None, detail: str) -> NoReturn:
    where = "the model's bytes are" if path is None else f"{path!r} is"
    head = buffer[:64]
    kind = next((text for magic, text in _SIGNATURES if head.startswith(magic)), None)
    if not head:
        kind = "empty"
    elif head[4:8] == b"ORTM":
        kind = "a model in ORT format; give the .onnx file that it was made from"
    elif kind is None and head[:1] != b"\x08":  # 08 opens every model: ir_version
        with contextlib.suppress(UnicodeDecodeError):
            text = head.decode("ascii")
            kind = f"a text that begins with {text[:24]!r}" if text.isprintable() or "\n" in text else None
    if kind is None:
        kind = f"{len(buffer)} bytes that begin with {head[:8].hex(' ')} ({detail}); is the file cut off?"
    raise SessionError(f"{where} not an ONNX model but {kind}")


class _Contents:
    """What the graphs and the functions of a model hold, for its header; `initializers` are names."""

    def __init__(self) -> None:
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.initializers: set[str] = set()
        self.ops: Counter[tuple[str, str]] = Counter()
        self.external_files: set[str] = set()

    def graph(self, graph: Message, depth: int) -> None:
        """Read a graph, with `depth` graphs around it."""
        if depth > _MAX_DEPTH:
            raise WireError(f"graphs are nested deeper than {_MAX_DEPTH}")
        for number, part in _each(
            graph, GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE_INITIALIZER
        ):
            if number == GRAPH_NODE:
                self.node(part, depth)
            elif number == GRAPH_INITIALIZER:
                self.tensor(part, is_initializer=depth == 0)
            elif number == GRAPH_SPARSE_INITIALIZER:
                for _, tensor in _each(part, SPARSE_TENSOR_VALUES, SPARSE_TENSOR_INDICES):
                    self.tensor(tensor, is_initializer=depth == 0)
            elif depth == 0:
                (self.inputs if number == GRAPH_INPUT else self.outputs).append(_value_info(part))

    def node(self, node: Message, depth: int) -> None:
        """Read a node, and the tensors and graphs in its attributes."""
        op_type = domain = ""
        for number, part in _each(node, NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN):
            if number == NODE_OP_TYPE:
                op_type = part.text()
            elif number == NODE_DOMAIN:
                domain = part.text()
            else:
                for kind, inner in _each(part, ATTRIBUTE_T, ATTRIBUTE_G, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS):
                    if kind in (ATTRIBUTE_G, ATTRIBUTE_GRAPHS):
                        self.graph(inner, depth + 1)
                    else:
                        self.tensor(inner, is_initializer=False)
        self.ops["" if domain == "ai.onnx" else domain, op_type] += 1

    def function(self, function: Message) -> tuple[str, str]:
        """Read a function; return its domain and name."""
        name = domain = ""
        for number, part in _each(function, FUNCTION_NAME, FUNCTION_NODE, FUNCTION_DOMAIN):
            if number == FUNCTION_NAME:
                name = part.text()
            elif number == FUNCTION_DOMAIN:
                domain = part.text()
            else:
                self.node(part, 1)
        return domain, name

    def tensor(self, tensor: Message, *, is_initializer: bool) -> None:
        """Read a tensor's name, if it is an initializer of the main graph, and the file that its weights lie in."""
        for number, part in _each(tensor, TENSOR_NAME, TENSOR_EXTERNAL_DATA):
            if number == TENSOR_NAME:
                if is_initializer:
                    self.initializers.add(part.text())
            else:
                fields = dict(part.fields())
                if _text(fields, STRING_STRING_ENTRY_KEY) == "location":
                    self.external_files.add(_text(fields, STRING_STRING_ENTRY_VALUE))


def _message(value: int | Message) -> Message:
    if isinstance(value, int):
        raise WireError("a number stands where ONNX has a message")
    return value


def _number(value: int | Message) -> int:
    if isinstance(value, Message):
        raise WireError(f"byte {value.start}: a message stands where ONNX has a number")
    return value


def _text(fields: dict[int, int | Message], number: int) -> str:
    return _message(fields[number]).text() if number in fields else ""


def _each(message: Message, *numbers: int) -> Iterator[tuple[int, Message]]:
    return ((number, _message(value)) for number, value in message.fields() if number in numbers)


def _value_info(info: Message) -> TensorInfo:
    fields = dict(info.fields())
    name = _text(fields, VALUE_INFO_NAME)
    types = dict(_message(fields[VALUE_INFO_TYPE]).fields()) if VALUE_INFO_TYPE in fields else {}
    if TYPE_TENSOR_TYPE not in types:
        kind = next((text for number, text in _NOT_TENSORS.items() if number in types), "unknown")
        return TensorInfo(name, kind, None)
    tensor = dict(_message(types[TYPE_TENSOR_TYPE]).fields())
    shape = _shape(_message(tensor[TENSOR_TYPE_SHAPE])) if TENSOR_TYPE_SHAPE in tensor else None
    return TensorInfo(name, dtype_of_onnx(_number(tensor.get(TENSOR_TYPE_ELEM_TYPE, 0))), shape)


def _shape(shape: Message) -> tuple[int | str | None, ...]:
    return tuple(_dimension(dict(part.fields())) for _, part in _each(shape, SHAPE_DIM))


def _dimension(fields: dict[int, int | Message]) -> int | str | None:
    if DIMENSION_DIM_VALUE not in fields:
        return _text(fields, DIMENSION_DIM_PARAM) or None
    size = _number(fields[DIMENSION_DIM_VALUE])
    return size if size < 1 << 63 else None  # some writers mark an unknown size by -1
