"""The body of an entrywise function as values: what each operator gives, and whether there is an instruction for it.

A body qualifies if it is made of operators that work entry by entry and round alike everywhere (`FOLDS`, `OTHERS`,
casts between float16 and float32), on inputs x1, x2, ... of one shape and on vectors that its node is given besides.
"""

import re
import struct
from collections.abc import Mapping
from typing import TypeAlias

from fusion_onnx.runtime._wire import Message

FOLDS = {"Add": 0, "Sum": 0, "Mul": 1, "Min": 2, "Max": 3}
OTHERS = {"Sub": 3, "Div": 4, "Abs": 5, "Neg": 6, "Sqrt": 7, "Identity": 8, "widen": 9, "narrow": 10}
OPERATORS = frozenset({*FOLDS, *OTHERS, "Cast", "Constant", "Split"})
"""The operators that a body with a kernel may have; not each body of these has one."""
_EXACT = frozenset({"Min", "Max", "Abs", "Neg", "Identity"})
"""What does no arithmetic, and so may be done to float16 in float32."""
_FLOAT, _HALF, _DOUBLE = 1, 10, 11
_UNPACK = {_FLOAT: "<f", _HALF: "<e", _DOUBLE: "<d"}
_MOST_INPUTS, _MOST_VALUES, _MOST_NODES = 1024, 2048, 1 << 15


class Unfit(Exception):
    """The body is not entrywise, or holds something that there is no instruction for."""


Attributes: TypeAlias = Mapping[str, int | Message]


class Value:
    """What an operator of the body gives: of the inputs' shape, but for vectors, their parts, and constants.

    signed: whether its sign is that of ONNX Runtime where it is zero: of 0 and -0, Min and Max may give either.
    """

    __slots__ = ("operands", "operator", "place", "signed")

    def __init__(self, operator: str, operands: tuple["Value", ...] = (), place: int = 0, signed: bool = True) -> None:
        self.operator, self.operands, self.place, self.signed = operator, operands, place, signed

    @property
    def shared(self) -> bool:
        """Whether it is one number for all entries, or one for each column."""
        return self.operator in ("part", "constant")


class Body:
    """A function's body as values, in the order in which they are computed; y is the last."""

    def __init__(self, function: Message, vectors: frozenset[int]) -> None:
        self.name = ""
        self.formal: list[str] = []
        outputs: list[str] = []
        nodes: list[Message] = []
        types: dict[str, int] = {}
        for number, value in function.fields():
            if not isinstance(value, Message):
                continue
            match number:
                case 1:
                    self.name = value.text()
                case 4:
                    self.formal.append(value.text())
                case 5:
                    outputs.append(value.text())
                case 7:
                    nodes.append(value)
                case 12:
                    types |= _typed(value)
        if not 0 < len(self.formal) <= _MOST_INPUTS or len(nodes) > _MOST_NODES or "\0" in self.name:
            raise Unfit
        (output,) = outputs
        self.element = types[output]
        if self.element not in _UNPACK or any(types[name] != self.element for name in self.formal):
            raise Unfit
        tensors = [i for i, name in enumerate(self.formal) if re.fullmatch(r"x[1-9]\d*", name)]
        self.tensors = len(tensors)
        if tensors != list(range(self.tensors)) or not vectors.issuperset(range(self.tensors, len(self.formal))):
            raise Unfit
        self.order: list[Value] = []
        self.parts: dict[tuple[int, int, int], Value] = {}
        self.constants: dict[bytes, Value] = {}
        half = self.element == _HALF
        known: dict[str, tuple[Value, bool]] = {}
        for i, name in enumerate(self.formal):
            formal = Value("x" if i < self.tensors else "vector", (), i)
            known[name] = (self._new("widen", formal) if half and i < self.tensors else formal, half)
        for node in nodes:
            names, results = self._results(node, known)
            for name, result in zip(names, results, strict=True):
                if name in known:
                    raise Unfit
                known[name] = result
        if len(self.parts) + len(self.constants) > _MOST_VALUES:
            raise Unfit
        y, is_half = known[output]
        if is_half != half or y.operator in ("vector", "part", "constant"):
            raise Unfit
        if half and y.operator != "narrow":
            y = self._new("narrow", y)
        self.y = self._new("Identity", y) if y.operator == "x" else y

    def _new(self, operator: str, *operands: Value) -> Value:
        if operator == "Div" and not operands[1].signed:
            raise Unfit  # its sign would be that of an infinity
        signed = operator == "Abs" or (operator not in ("Min", "Max") and all(value.signed for value in operands))
        value = Value(operator, operands, signed=signed)
        self.order.append(value)
        return value

    def _results(
        self, node: Message, known: Mapping[str, tuple[Value, bool]]
    ) -> tuple[list[str], list[tuple[Value, bool]]]:
        """Return a node's outputs: their names, and each with whether it is of float16."""
        operator, names, outputs, attributes = _node(node)
        given = [known[name] for name in names]
        if operator == "Constant":
            return outputs, [self._constant(attributes)]
        if operator == "Cast":
            ((value, half),) = given
            return outputs, [self._cast(value, half, attributes)]
        if operator == "Split":
            ((value, half),) = given
            count = len(outputs)
            if value.operator != "vector" or {"axis": 0, **attributes} != {"axis": 0, "num_outputs": count}:
                raise Unfit
            return outputs, [(self._part(value, i, count), half) for i in range(count)]
        if attributes or not given or (operator not in FOLDS and operator not in OTHERS) or operator.islower():
            raise Unfit
        halves = {half for _, half in given}
        if len(halves) > 1 or (halves == {True} and operator not in _EXACT):
            raise Unfit  # float16 arithmetic: how often ONNX Runtime rounds is its own affair
        values = [self._part(value, 0, 1) if value.operator == "vector" else value for value, _ in given]
        if all(value.shared for value in values) or any(value.operator == "narrow" for value in values):
            raise Unfit
        single = operator in FOLDS and len(values) == 1
        return outputs, [(values[0] if single else self._new(operator, *values), halves.pop())]

    def _constant(self, attributes: Attributes) -> tuple[Value, bool]:
        tensor = _message(attributes["value"])
        fields = dict(tensor.fields())
        kind, raw = fields[2], _message(fields[9]).raw()
        if not isinstance(kind, int) or (kind != self.element and (kind, self.element) != (_FLOAT, _HALF)):
            raise Unfit
        if [size for number, size in tensor.fields() if number == 1] not in ([], [1]):
            raise Unfit
        number = struct.pack("<d", *struct.unpack(_UNPACK[kind], raw))
        value = self.constants.setdefault(number, Value("constant", (), len(self.constants)))
        return value, kind == _HALF

    def _part(self, vector: Value, which: int, count: int) -> Value:
        return self.parts.setdefault((vector.place, which, count), Value("part", (), len(self.parts)))

    def _cast(self, value: Value, half: bool, attributes: Attributes) -> tuple[Value, bool]:
        to = attributes["to"]
        if len(attributes) > 1 or self.element != _HALF or to not in (_FLOAT, _HALF) or value.operator == "narrow":
            raise Unfit
        if half or to == _FLOAT:
            return value, half and to == _HALF  # what was float16 is held as float32 already
        if value.shared or value.operator == "vector":
            raise Unfit
        return self._new("narrow", value), True


def _message(value: int | Message) -> Message:
    if isinstance(value, int):
        raise Unfit
    return value


def _node(node: Message) -> tuple[str, list[str], list[str], dict[str, int | Message]]:
    """Return a node's operator, inputs, outputs and attributes: numbers and tensors."""
    operator, inputs, outputs, attributes = "", list[str](), list[str](), {}
    for number, value in node.fields():
        match number, value:
            case 1, Message():
                inputs.append(value.text())
            case 2, Message():
                outputs.append(value.text())
            case 4, Message():
                operator = value.text()
            case 5, Message():
                fields = dict(value.fields())
                attributes[_message(fields[1]).text()] = fields[5] if 5 in fields else fields.get(3, 0)
                if 21 in fields:  # it is an attribute of the call
                    raise Unfit
            case 7, Message() if value.text() not in ("", "ai.onnx"):
                raise Unfit
    return operator, inputs, outputs, attributes


def _typed(info: Message) -> dict[str, int]:
    """Return the element type of a value, by its name."""
    fields = dict(info.fields())
    tensor = dict(_message(dict(_message(fields[2]).fields())[1]).fields())
    kind = tensor[1]
    if not isinstance(kind, int):
        raise Unfit
    return {_message(fields[1]).text(): kind}
