"""Read a model's header in Python, before any C++ sees the file.

The field numbers are those of onnx.proto. Weights are stepped over, so a file of many gigabytes costs its nodes only.
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
from ._wire import Buffer, Message, WireError

_MAX_DEPTH = 100  # of graphs inside nodes (If, Loop); the checker's own limit for calls
_NOT_TENSORS = {4: "sequence", 5: "map", 8: "sparse_tensor", 9: "optional"}
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
    """Read the header of a model, given as a path or as the file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        SessionError: it is not an ONNX model, with what was seen instead.
    """
    with opened(model) as (buffer, path):
        return _parse(buffer, path)


def function_calls(model: str | os.PathLike[str] | bytes, domain: str) -> Iterator[tuple[Message, frozenset[int]]]:
    """Yield a domain's functions, each with the numbers of those inputs that its calls give vectors: one axis.

    That is known of initializers, of the model's inputs, and of `w`, which a fusion's contract has flat. A function of
    which there is more than one by its name (an overload) is left out.

    Raises:
        WireError: the file is malformed; `read_header` says how.
    """
    with opened(model) as (buffer, _):
        calls = _Calls(domain)
        functions: dict[str, list[Message]] = {}
        for number, part in _each(Message(buffer), 7, 25):
            if number == 7:
                calls.read(part)
            elif any(text.text() == domain for _, text in _each(part, 10)):
                functions.setdefault(next((text.text() for _, text in _each(part, 1)), ""), []).append(part)
        for name, (function, *overloads) in functions.items():
            if overloads or any(text.text() for _, text in _each(function, 13)):
                continue
            formal = [text.text() for _, text in _each(function, 4)]
            yield function, calls.vectors(name) | {i for i, text in enumerate(formal) if text == "w"}


class _Calls:
    """What a graph's calls of one domain's functions are given."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._vectors: set[str] = set()
        self._inputs: dict[str, list[list[str]]] = {}

    def read(self, graph: Message) -> None:
        """Take note of a graph's calls, initializers and inputs."""
        for number, part in _each(graph, 1, 5, 11):
            if number == 1:
                fields = list(_each(part, 1, 4, 7))
                if any(n == 7 and text.text() == self._domain for n, text in fields):
                    name = next((text.text() for n, text in fields if n == 4), "")
                    self._inputs.setdefault(name, []).append([text.text() for n, text in fields if n == 1])
            elif number == 5:
                if sum(n == 1 for n, _ in part.fields()) == 1:
                    self._vectors |= {text.text() for _, text in _each(part, 8)}
            elif len((info := _value_info(part)).shape or ()) == 1:
                self._vectors.add(info.name)

    def vectors(self, name: str) -> frozenset[int]:
        """Return which inputs of a function are vectors in every call."""
        given = [{i for i, actual in enumerate(call) if actual in self._vectors} for call in self._inputs.get(name, ())]
        return frozenset(set.intersection(*given) if given else ())


@contextlib.contextmanager
def opened(model: str | os.PathLike[str] | bytes) -> Iterator[tuple[Buffer, str | None]]:
    """Give a file's bytes, to be read while it is open, and its path; bytes as they are."""
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


class _Draft:
    def __init__(self) -> None:
        self.ir_version = self.graphs = 0
        self.producer = ["", ""]
        self.opsets: dict[str, int] = {}
        self.metadata: dict[str, str] = {}
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.filled: set[str] = set()
        self.ops: Counter[tuple[str, str]] = Counter()
        self.functions: list[tuple[str, str]] = []
        self.external: set[str] = set()


def _parse(buffer: Buffer, path: str | None) -> ModelHeader:
    draft = _Draft()
    try:
        for number, value in Message(buffer).fields():
            _model_field(draft, number, value)
    except WireError as error:
        _refuse(buffer, path, str(error))
    if not draft.ir_version or draft.graphs != 1:
        _refuse(buffer, path, f"IR version {draft.ir_version}, {draft.graphs} graphs")
    return ModelHeader(
        path=path,
        size=len(buffer),
        ir_version=draft.ir_version,
        producer=" ".join(draft.producer).strip(),
        opset_imports=draft.opsets,
        metadata=draft.metadata,
        inputs=tuple(info for info in draft.inputs if info.name not in draft.filled),
        outputs=tuple(draft.outputs),
        ops=dict(draft.ops),
        functions=tuple(draft.functions),
        external_files=tuple(sorted(draft.external)),
    )


def _refuse(buffer: Buffer, path: str | None, detail: str) -> NoReturn:
    where = "the model's bytes are" if path is None else f"{path!r} is"
    head = buffer[:64]
    seen = next((text for magic, text in _SIGNATURES if head.startswith(magic)), None)
    if not head:
        seen = "empty"
    elif head[4:8] == b"ORTM":
        seen = "a model in ORT format; give the .onnx file that it was made from"
    elif seen is None and head[:1] != b"\x08":  # 08 opens every model: ir_version
        with contextlib.suppress(UnicodeDecodeError):
            text = head.decode("ascii")
            seen = f"a text that begins with {text[:24]!r}" if text.isprintable() or "\n" in text else None
    if seen is None:
        seen = f"{len(buffer)} bytes that begin with {head[:8].hex(' ')} ({detail}); is the file cut off?"
    raise SessionError(f"{where} not an ONNX model but {seen}")


def _message(value: int | Message) -> Message:
    if isinstance(value, int):
        raise WireError("a number stands where ONNX has a message")
    return value


def _number(value: int | Message) -> int:
    if isinstance(value, Message):
        raise WireError(f"byte {value.start}: a message stands where ONNX has a number")
    return value


def _model_field(draft: _Draft, number: int, value: int | Message) -> None:
    match number:
        case 1:
            draft.ir_version = _number(value)
        case 2 | 3:
            draft.producer[number - 2] = _message(value).text()
        case 7:
            draft.graphs += 1
            _graph(draft, _message(value), 0)
        case 8:
            opset = dict(_message(value).fields())
            draft.opsets[_text(opset, 1)] = _number(opset.get(2, 0))
        case 14:
            entry = dict(_message(value).fields())
            draft.metadata[_text(entry, 1)] = _text(entry, 2)
        case 25:
            _function(draft, _message(value))


def _text(fields: dict[int, int | Message], number: int) -> str:
    return _message(fields[number]).text() if number in fields else ""


def _each(message: Message, *numbers: int) -> Iterator[tuple[int, Message]]:
    return ((number, _message(value)) for number, value in message.fields() if number in numbers)


def _graph(draft: _Draft, graph: Message, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise WireError(f"graphs are nested deeper than {_MAX_DEPTH}")
    for number, part in _each(graph, 1, 5, 11, 12, 15):
        match number:
            case 1:
                _node(draft, part, depth)
            case 5:
                _initializer(draft, part, main=depth == 0)
            case 15:
                for _, values in _each(part, 1, 2):
                    _initializer(draft, values, main=depth == 0)
            case 11 if depth == 0:
                draft.inputs.append(_value_info(part))
            case 12 if depth == 0:
                draft.outputs.append(_value_info(part))


def _node(draft: _Draft, node: Message, depth: int) -> None:
    op_type = domain = ""
    for number, part in _each(node, 4, 5, 7):
        if number == 4:
            op_type = part.text()
        elif number == 7:
            domain = part.text()
        else:
            for kind, inner in _each(part, 5, 6, 10, 11):  # an attribute: one tensor or graph, several
                if kind in (6, 11):
                    _graph(draft, inner, depth + 1)
                else:
                    _initializer(draft, inner, main=False)
    draft.ops["" if domain == "ai.onnx" else domain, op_type] += 1


def _function(draft: _Draft, function: Message) -> None:
    name = domain = ""
    for number, part in _each(function, 1, 7, 10):
        if number == 1:
            name = part.text()
        elif number == 10:
            domain = part.text()
        else:
            _node(draft, part, 1)
    draft.functions.append((domain, name))


def _initializer(draft: _Draft, tensor: Message, *, main: bool) -> None:
    for number, part in _each(tensor, 8, 13):
        if number == 8 and main:
            draft.filled.add(part.text())
        elif number == 13:
            entry = dict(part.fields())
            if _text(entry, 1) == "location":
                draft.external.add(_text(entry, 2))


def _value_info(info: Message) -> TensorInfo:
    fields = dict(info.fields())
    name = _text(fields, 1)
    kinds = dict(_message(fields[2]).fields()) if 2 in fields else {}
    if 1 not in kinds:
        kind = next((text for key, text in _NOT_TENSORS.items() if key in kinds), "unknown")
        return TensorInfo(name, kind, None)
    tensor = dict(_message(kinds[1]).fields())
    shape = _shape(_message(tensor[2])) if 2 in tensor else None
    return TensorInfo(name, dtype_of_onnx(_number(tensor.get(1, 0))), shape)


def _shape(shape: Message) -> tuple[int | str | None, ...]:
    return tuple(_dim(dict(part.fields())) for _, part in _each(shape, 1))


def _dim(fields: dict[int, int | Message]) -> int | str | None:
    if 1 not in fields:
        return _text(fields, 2) or None
    size = _number(fields[1])
    return size if size < 1 << 63 else None  # some writers mark an unknown size by -1
