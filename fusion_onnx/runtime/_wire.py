"""Protobuf's wire format, read and written: just enough for the header of a model, and to put other nodes into it.

A message is a row of fields, each a varint tag ``number << 3 | type`` and a value. Reading works on offsets into
one buffer (bytes, or a memory-mapped file): what nobody asks for, the weights above all, is stepped over.

The constants are the numbers of the fields in onnx.proto: MESSAGE_FIELD.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, overload

MODEL_IR_VERSION, MODEL_PRODUCER_NAME, MODEL_PRODUCER_VERSION, MODEL_GRAPH = 1, 2, 3, 7
MODEL_OPSET_IMPORT, MODEL_METADATA_PROPS, MODEL_FUNCTIONS = 8, 14, 25
GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE_INITIALIZER = 1, 2, 5, 11, 12, 15
FUNCTION_NAME, FUNCTION_INPUT, FUNCTION_OUTPUT, FUNCTION_NODE = 1, 4, 5, 7
FUNCTION_DOMAIN, FUNCTION_VALUE_INFO, FUNCTION_OVERLOAD = 10, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_I, ATTRIBUTE_T, ATTRIBUTE_G, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 1, 3, 5, 6, 10, 11
ATTRIBUTE_REF_ATTR_NAME = 21
TENSOR_DIMS, TENSOR_DATA_TYPE, TENSOR_NAME, TENSOR_RAW_DATA, TENSOR_EXTERNAL_DATA = 1, 2, 8, 9, 13
SPARSE_TENSOR_VALUES, SPARSE_TENSOR_INDICES = 1, 2
VALUE_INFO_NAME, VALUE_INFO_TYPE = 1, 2
TYPE_TENSOR_TYPE, TYPE_SEQUENCE_TYPE, TYPE_MAP_TYPE, TYPE_SPARSE_TENSOR_TYPE, TYPE_OPTIONAL_TYPE = 1, 4, 5, 8, 9
TENSOR_TYPE_ELEM_TYPE, TENSOR_TYPE_SHAPE = 1, 2
SHAPE_DIM = 1
DIMENSION_DIM_VALUE, DIMENSION_DIM_PARAM = 1, 2
OPERATOR_SET_ID_DOMAIN, OPERATOR_SET_ID_VERSION = 1, 2
STRING_STRING_ENTRY_KEY, STRING_STRING_ENTRY_VALUE = 1, 2

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZE = {FIXED64: 8, FIXED32: 4}


class Buffer(Protocol):
    """What the reader needs of bytes and of ``mmap``."""

    def __len__(self) -> int:
        """The number of bytes."""

    @overload
    def __getitem__(self, key: int, /) -> int: ...

    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...

    def __getitem__(self, key: int | slice, /) -> int | bytes:
        """One byte, or the bytes of a slice, copied."""


class WireError(ValueError):
    """The bytes are not a well-formed message; the message says where."""


class Message:
    """The bytes ``start`` to ``end`` of a buffer, read as one message.

    begin: where the field whose value it is begins, with its tag.
    """

    __slots__ = ("begin", "buffer", "end", "start")

    def __init__(self, buffer: Buffer, start: int = 0, end: int | None = None, begin: int = 0) -> None:
        self.buffer = buffer
        self.start = start
        self.end = len(buffer) if end is None else end
        self.begin = begin

    def fields(self) -> Iterator[tuple[int, "int | Message"]]:
        """Yield (field number, value): an int for a varint, a Message for bytes; without fixed-size values.

        Every step moves forward, so this ends on any input.

        Raises:
            WireError: a field is malformed or runs past the end.
        """
        at = self.start
        while at < self.end:
            begin = at
            tag, at = self._varint(at)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise WireError(f"byte {begin}: no field has number 0")
            if kind == VARINT:
                value, at = self._varint(at)
                yield number, value
                continue
            if kind == BYTES:
                size, at = self._varint(at)
            elif kind in _FIXED_SIZE:
                size = _FIXED_SIZE[kind]
            else:
                raise WireError(f"byte {begin}: wire type {kind} is not used by ONNX")
            if size > self.end - at:
                raise WireError(f"byte {begin}: field {number} wants {size} bytes, {self.end - at} are left")
            if kind == BYTES:
                yield number, Message(self.buffer, at, at + size, begin)
            at += size

    def raw(self) -> bytes:
        """The message's bytes, copied."""
        return self.buffer[self.start : self.end]

    def text(self) -> str:
        """The message's bytes as text.

        Raises:
            WireError: they are not UTF-8.
        """
        try:
            return str(self.raw(), "utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"byte {self.start}: a name is not UTF-8") from error

    def _varint(self, at: int) -> tuple[int, int]:
        if at < self.end and (byte := self.buffer[at]) < 0x80:
            return byte, at + 1
        chunk = self.buffer[at : min(at + 10, self.end)]
        value = 0
        for count, byte in enumerate(chunk):
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + count + 1
        raise WireError(f"byte {at}: a number does not end")


def edited(message: Message, edit: Callable[[int, Message], Iterable[bytes] | None]) -> bytes | None:
    """Return the message's bytes with other fields in place of some; None where all stay.

    edit: takes each field that is text, bytes or a message, and returns those that take its place, or None.
    """
    parts, at = list[bytes](), message.start
    for number, part in message.fields():
        if isinstance(part, Message) and (replacements := edit(number, part)) is not None:
            parts += [message.buffer[at : part.begin], *(encode(number, value) for value in replacements)]
            at = part.end
    return b"".join([*parts, message.buffer[at : message.end]]) if parts else None


def encode_varint(value: int) -> bytes:
    """The varint of an int >= 0."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(number: int, value: int | str | bytes) -> bytes:
    """One field: an int as a varint, text or bytes (a nested message) with their length."""
    if isinstance(value, int):
        return encode_varint(number << 3 | VARINT) + encode_varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return encode_varint(number << 3 | BYTES) + encode_varint(len(payload)) + payload
