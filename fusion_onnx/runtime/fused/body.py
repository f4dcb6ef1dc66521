"""The body of an entrywise function as values: what each operator computes, where there is an instruction for it.

A body qualifies if it is made of operators that work entry by entry and round alike everywhere (`FOLDS`, `OTHERS`,
casts between float16 and float32), on inputs x1, x2, ... of one shape and on vectors that its node takes besides.
"""

import re
import struct
from collections.abc import Mapping
from typing import TypeAlias

from fusion_onnx.runtime._wire import (
    ATTRIBUTE_I,
    ATTRIBUTE_NAME,
    ATTRIBUTE_REF_ATTR_NAME,
    ATTRIBUTE_T,
    FUNCTION_INPUT,
    FUNCTION_NAME,
    FUNCTION_NODE,
    FUNCTION_OUTPUT,
    FUNCTION_VALUE_INFO,
    NODE_ATTRIBUTE,
    NODE_DOMAIN,
    NODE_INPUT,
    NODE_OP_TYPE,
    NODE_OUTPUT,
    TENSOR_DATA_TYPE,
    TENSOR_DIMS,
    TENSOR_RAW_DATA,
    TENSOR_TYPE_ELEM_TYPE,
    TYPE_TENSOR_TYPE,
    VALUE_INFO_NAME,
    VALUE_INFO_TYPE,
    Message,
)

from .instructions import FOLDS, OTHERS, Value

OPERATORS = frozenset({*FOLDS, *OTHERS, "Cast", "Constant", "Split"})
"""The operators that a body with a kernel may have; not each body of these has one."""
_EXACT = frozenset({"Min", "Max", "Abs", "Neg", "Identity"})
"""What does no arithmetic, and so may be done to float16 in float32."""
_FLOAT, _HALF, _DOUBLE = 1, 10, 11
_UNPACK = {_FLOAT: "<f", _HALF: "<e", _DOUBLE: "<d"}
_MOST_INPUTS, _MOST_VALUES, _MOST_NODES = 1024, 2048, 1 << 15


class Unfit(Exception):
    """The body is not entrywise, or holds something that there is no instruction for; the message says what."""


Attributes: TypeAlias = Mapping[str, int | Message]
Operand: TypeAlias = tuple[Value, bool]
"""A value, and whether the body has it in float16."""


class Body:
    """A function's body as values, in the order in which they are computed; y is the last.

    Raises:
        Unfit: there is no instruction for something in it.
        WireError, KeyError, IndexError, ValueError, struct.error: it is malformed.
    """

    def __init__(self, function: Message, vectors: frozenset[int]) -> None:
        self.name = ""
        self.formal: list[str] = []
        outputs: list[str] = []
        nodes: list[Message] = []
        types: dict[str, int] = {}
        for number, field in function.fields():
            if isinstance(field, int):
                continue
            if number == FUNCTION_NAME:
                self.name = field.text()
            elif number == FUNCTION_INPUT:
                self.formal.append(field.text())
            elif number == FUNCTION_OUTPUT:
                outputs.append(field.text())
            elif number == FUNCTION_NODE:
                nodes.append(field)
            elif number == FUNCTION_VALUE_INFO:
                types |= _element_type(field)
        if not 0 < len(self.formal) <= _MOST_INPUTS or len(nodes) > _MOST_NODES or "\0" in self.name:
            raise Unfit(
                f"it has {len(self.formal)} inputs and {len(nodes)} operators; a kernel has 1 to {_MOST_INPUTS} and at "
                f"most {_MOST_NODES}, and no NUL in its name"
            )
        if len(outputs) != 1:
            raise Unfit(f"it has {len(outputs)} outputs; a kernel has one")
        (output,) = outputs
        self.element = types.get(output, 0)
        if self.element not in _UNPACK or any(types.get(name) != self.element for name in self.formal):
            raise Unfit("its inputs and its output are not all declared as float16, as float32, or as float64")
        tensors = [i for i, name in enumerate(self.formal) if re.fullmatch(r"x[1-9]\d*", name)]
        self.tensors = len(tensors)
        if tensors != list(range(self.tensors)):
            raise Unfit("its inputs are not x1, x2, ... first, and then vectors")
        if not vectors.issuperset(range(self.tensors, len(self.formal))):
            names = [name for i, name in enumerate(self.formal) if i >= self.tensors and i not in vectors]
            raise Unfit(f"not every call gives a vector as {', '.join(names)}, as far as the file says")
        self.order: list[Value] = []
        self.parts: dict[tuple[int, int, int], Value] = {}
        self.constants: dict[bytes, Value] = {}
        is_half = self.element == _HALF
        values: dict[str, Operand] = {}
        for i, name in enumerate(self.formal):
            source = Value("x" if i < self.tensors else "vector", (), i)
            values[name] = (self._new("widen", source) if is_half and i < self.tensors else source, is_half)
        for node in nodes:
            names, results = self._results(node, values)
            for name, result in zip(names, results, strict=True):
                if name in values:
                    raise Unfit(f"{name!r} is computed twice")
                values[name] = result
        if len(self.parts) + len(self.constants) > _MOST_VALUES:
            raise Unfit(f"it has {len(self.parts) + len(self.constants)} numbers; a kernel has {_MOST_VALUES} at most")
        y, y_is_half = values[output]
        if y_is_half != is_half or y.operator == "vector" or y.is_shared:
            raise Unfit("its output is no entry of its inputs' shape and type")
        if is_half and y.operator != "narrow":
            y = self._new("narrow", y)
        self.y = self._new("Identity", y) if y.operator == "x" else y

    def _new(self, operator: str, *operands: Value) -> Value:
        if operator == "Div" and not operands[1].signed:
            raise Unfit("Div by a Min or Max: a zero of the other sign would make an infinity of the other sign")
        signed = operator == "Abs" or (operator not in ("Min", "Max") and all(value.signed for value in operands))
        value = Value(operator, operands, signed=signed)
        self.order.append(value)
        return value

    def _results(self, node: Message, values: Mapping[str, Operand]) -> tuple[list[str], list[Operand]]:
        """Return a node's outputs: their names, and each with whether it is of float16."""
        operator, names, outputs, attributes = _node(node)
        operands = [values[name] for name in names]
        if operator == "Constant":
            return outputs, [self._constant(attributes)]
        if operator == "Cast":
            ((value, is_half),) = operands
            return outputs, [self._cast(value, is_half, attributes)]
        if operator == "Split":
            ((value, is_half),) = operands
            count = len(outputs)
            if value.operator != "vector" or {"axis": 0, **attributes} != {"axis": 0, "num_outputs": count}:
                raise Unfit("Split of what is no vector, or into unequal parts")
            return outputs, [(self._part(value, i, count), is_half) for i in range(count)]
        if (operator not in FOLDS and operator not in OTHERS) or operator.islower():
            raise Unfit(f"there is no instruction for {operator}")
        if attributes or not operands:
            raise Unfit(f"{operator} with attributes, or without inputs")
        precisions = {is_half for _, is_half in operands}
        if len(precisions) > 1 or (precisions == {True} and operator not in _EXACT):
            raise Unfit(f"{operator} in float16: it is ONNX Runtime's own affair how often that is rounded")
        operand_values = [self._part(v, 0, 1) if v.operator == "vector" else v for v, _ in operands]
        if all(value.is_shared for value in operand_values):
            raise Unfit(f"{operator} of numbers alone")
        if any(value.operator == "narrow" for value in operand_values):
            raise Unfit(f"{operator} of what was cast to float16")
        is_copy = operator in FOLDS and len(operand_values) == 1
        return outputs, [(operand_values[0] if is_copy else self._new(operator, *operand_values), precisions.pop())]

    def _constant(self, attributes: Attributes) -> Operand:
        tensor = _message(attributes["value"])
        fields = dict(tensor.fields())
        kind, raw = fields[TENSOR_DATA_TYPE], _message(fields[TENSOR_RAW_DATA]).raw()
        if not isinstance(kind, int) or (kind != self.element and (kind, self.element) != (_FLOAT, _HALF)):
            raise Unfit("a constant of another type")
        if [size for number, size in tensor.fields() if number == TENSOR_DIMS] not in ([], [1]):
            raise Unfit("a constant that is not one number")
        double = struct.pack("<d", *struct.unpack(_UNPACK[kind], raw))
        value = self.constants.setdefault(double, Value("constant", (), len(self.constants)))
        return value, kind == _HALF

    def _part(self, vector: Value, part: int, count: int) -> Value:
        return self.parts.setdefault((vector.index, part, count), Value("part", (), len(self.parts)))

    def _cast(self, value: Value, is_half: bool, attributes: Attributes) -> Operand:
        to = attributes["to"]
        if len(attributes) > 1 or self.element != _HALF or to not in (_FLOAT, _HALF) or value.operator == "narrow":
            raise Unfit("a Cast that is not between float16 and float32, or of what was cast to float16")
        if is_half or to == _FLOAT:
            return value, is_half and to == _HALF  # in float32 it is already
        if value.is_shared or value.operator == "vector":
            raise Unfit("a Cast of a number or a vector to float16")
        return self._new("narrow", value), True


def _message(field: int | Message) -> Message:
    if isinstance(field, int):
        raise Unfit("a number stands where ONNX has a message")
    return field


def _node(node: Message) -> tuple[str, list[str], list[str], dict[str, int | Message]]:
    """Return a node's operator, inputs, outputs and attributes: numbers and tensors."""
    operator, inputs, outputs, attributes = "", list[str](), list[str](), dict[str, int | Message]()
    for number, field in node.fields():
        if isinstance(field, int):
            continue
        if number == NODE_INPUT:
            inputs.append(field.text())
        elif number == NODE_OUTPUT:
            outputs.append(field.text())
        elif number == NODE_OP_TYPE:
            operator = field.text()
        elif number == NODE_ATTRIBUTE:
            fields = dict(field.fields())
            name = _message(fields[ATTRIBUTE_NAME]).text()
            attributes[name] = fields[ATTRIBUTE_T] if ATTRIBUTE_T in fields else fields.get(ATTRIBUTE_I, 0)
            if ATTRIBUTE_REF_ATTR_NAME in fields:
                raise Unfit(f"attribute {name!r} is one of the call")
        elif number == NODE_DOMAIN and (domain := field.text()) not in ("", "ai.onnx"):
            raise Unfit(f"an operator of domain {domain!r}")
    return operator, inputs, outputs, attributes


def _element_type(info: Message) -> dict[str, int]:
    """Return the element type of a value, by its name."""
    fields = dict(info.fields())
    tensor_type = _message(dict(_message(fields[VALUE_INFO_TYPE]).fields())[TYPE_TENSOR_TYPE])
    element = dict(tensor_type.fields())[TENSOR_TYPE_ELEM_TYPE]
    if not isinstance(element, int):
        raise Unfit("a message stands where ONNX has a number")
    return {_message(fields[VALUE_INFO_NAME]).text(): element}
