"""From the body of an entrywise function to a program: instructions that run over a block of entries in the cache.

A body qualifies if it is made of operators that work entry by entry and round alike everywhere (`_FOLDS`, `_OTHERS`,
casts between float16 and float32), on inputs x1, x2, ... of one shape and on vectors that its node is given besides.
The program does what the body does, in the body's order, so another body is another program. entrywise.h has the
instructions.
"""

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fusion_onnx.runtime._wire import Message, WireError

_FOLDS = {"Add": 0, "Sum": 0, "Mul": 1, "Min": 2, "Max": 3}
_OTHERS = {"Sub": 3, "Div": 4, "Abs": 5, "Neg": 6, "Sqrt": 7, "Identity": 8, "widen": 9, "narrow": 10}
_FOLD, _EXCHANGE, _MERGE, _EIGHT = 0, 1, 2, 11
_ONWARD = 4
_AT_ONCE = 8
"""How many operands a fold reads at a time: inputs often begin at the same place of a page, and then their lines share
the few ways of a set in the caches."""
_IN_ORDER = 16
_PLAIN, _MAGNITUDE, _PRODUCT, _PAIRED = 0, 1, 2, 4
_INPUT, _VALUE, _OUTPUT, _NOWHERE = 1 << 20, 2 << 20, 3 << 20, 4 << 20
_EXACT = frozenset({"Min", "Max", "Abs", "Neg", "Identity"})
"""What does no arithmetic, and so may be done to float16 in float32."""
_FLOAT, _HALF, _DOUBLE = 1, 10, 11
_UNPACK = {_FLOAT: "<f", _HALF: "<e", _DOUBLE: "<d"}
_MOST_INPUTS, _MOST_VALUES, _MOST_NODES = 1024, 2048, 1 << 15


@dataclass(frozen=True, slots=True)
class Program:
    """What entrywise.h runs.

    element: ONNX's element type of the inputs and the output. tensors: how many inputs, the first ones, are combined;
    the others are vectors. parts: the values that are parts of vectors: of which input, which part, of how many.
    constants: the values after those, the bytes of doubles: as numbers, -0 would equal 0, and NaN not itself. works:
    the vectors read and written for one of the output.
    """

    name: str
    element: int
    inputs: int
    tensors: int
    registers: int
    code: tuple[int, ...]
    parts: tuple[tuple[int, int, int], ...]
    constants: bytes
    works: int


class _Unfit(Exception):
    """The body is not entrywise, or holds something that there is no instruction for."""


Attributes: TypeAlias = Mapping[str, int | Message]


@dataclass(eq=False, slots=True)
class _Value:
    """What an operator of the body gives: of the inputs' shape, but for vectors, their parts, and constants.

    signed: whether its sign is that of ONNX Runtime where it is zero: of 0 and -0, Min and Max may give either.
    """

    operator: str
    operands: tuple["_Value", ...] = ()
    place: int = 0
    signed: bool = True

    @property
    def shared(self) -> bool:
        """Whether it is one number for all entries, or one for each column."""
        return self.operator in ("part", "constant")


def compile_function(function: Message, vectors: Iterable[int]) -> Program | None:
    """Return the program of a function's body, None if it is not entrywise.

    vectors: which of its inputs are known to have one axis.
    """
    try:
        body = _Body(function, frozenset(vectors))
        return _Writer(body).program()
    except (_Unfit, WireError, KeyError, IndexError, ValueError, struct.error):
        return None


class _Body:
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
            raise _Unfit
        (output,) = outputs
        self.element = types[output]
        if self.element not in _UNPACK or any(types[name] != self.element for name in self.formal):
            raise _Unfit
        tensors = [i for i, name in enumerate(self.formal) if re.fullmatch(r"x[1-9]\d*", name)]
        self.tensors = len(tensors)
        if tensors != list(range(self.tensors)) or not vectors.issuperset(range(self.tensors, len(self.formal))):
            raise _Unfit
        self.order: list[_Value] = []
        self.parts: dict[tuple[int, int, int], _Value] = {}
        self.constants: dict[bytes, _Value] = {}
        half = self.element == _HALF
        known: dict[str, tuple[_Value, bool]] = {}
        for i, name in enumerate(self.formal):
            formal = _Value("x" if i < self.tensors else "vector", (), i)
            known[name] = (self._new("widen", formal) if half and i < self.tensors else formal, half)
        for node in nodes:
            names, results = self._results(node, known)
            for name, result in zip(names, results, strict=True):
                if name in known:
                    raise _Unfit
                known[name] = result
        if len(self.parts) + len(self.constants) > _MOST_VALUES:
            raise _Unfit
        y, is_half = known[output]
        if is_half != half or y.operator in ("vector", "part", "constant"):
            raise _Unfit
        if half and y.operator != "narrow":
            y = self._new("narrow", y)
        self.y = self._new("Identity", y) if y.operator == "x" else y

    def _new(self, operator: str, *operands: _Value) -> _Value:
        if operator == "Div" and not operands[1].signed:
            raise _Unfit  # its sign would be that of an infinity
        signed = operator == "Abs" or (operator not in ("Min", "Max") and all(value.signed for value in operands))
        value = _Value(operator, operands, signed=signed)
        self.order.append(value)
        return value

    def _results(
        self, node: Message, known: Mapping[str, tuple[_Value, bool]]
    ) -> tuple[list[str], list[tuple[_Value, bool]]]:
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
                raise _Unfit
            return outputs, [(self._part(value, i, count), half) for i in range(count)]
        if attributes or not given or (operator not in _FOLDS and operator not in _OTHERS) or operator.islower():
            raise _Unfit
        halves = {half for _, half in given}
        if len(halves) > 1 or (halves == {True} and operator not in _EXACT):
            raise _Unfit  # float16 arithmetic: how often ONNX Runtime rounds is its own affair
        values = [self._part(value, 0, 1) if value.operator == "vector" else value for value, _ in given]
        if all(value.shared for value in values) or any(value.operator == "narrow" for value in values):
            raise _Unfit
        single = operator in _FOLDS and len(values) == 1
        return outputs, [(values[0] if single else self._new(operator, *values), halves.pop())]

    def _constant(self, attributes: Attributes) -> tuple[_Value, bool]:
        tensor = _message(attributes["value"])
        fields = dict(tensor.fields())
        kind, raw = fields[2], _message(fields[9]).raw()
        if not isinstance(kind, int) or (kind != self.element and (kind, self.element) != (_FLOAT, _HALF)):
            raise _Unfit
        if [size for number, size in tensor.fields() if number == 1] not in ([], [1]):
            raise _Unfit
        number = struct.pack("<d", *struct.unpack(_UNPACK[kind], raw))
        value = self.constants.setdefault(number, _Value("constant", (), len(self.constants)))
        return value, kind == _HALF

    def _part(self, vector: _Value, which: int, count: int) -> _Value:
        return self.parts.setdefault((vector.place, which, count), _Value("part", (), len(self.parts)))

    def _cast(self, value: _Value, half: bool, attributes: Attributes) -> tuple[_Value, bool]:
        to = attributes["to"]
        if len(attributes) > 1 or self.element != _HALF or to not in (_FLOAT, _HALF) or value.operator == "narrow":
            raise _Unfit
        if half or to == _FLOAT:
            return value, half and to == _HALF  # what was float16 is held as float32 already
        if value.shared or value.operator == "vector":
            raise _Unfit
        return self._new("narrow", value), True


@dataclass(eq=False, slots=True)
class _Instruction:
    """Words in front of the operands; then what it gives, and what it takes.

    lead: of a fold, how many of its operands come first, as they are, and are not counted.
    """

    head: tuple[int, ...]
    gives: tuple[_Value | None, ...]
    takes: tuple[_Value, ...]
    lead: int = 0


class _Writer:
    """Chooses instructions for the values of a body, then registers for what they give."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        reached = _reached(body.y)
        order = [value for value in body.order if value in reached]
        uses = Counter(operand for value in order for operand in value.operands)
        chosen = _chosen(order, uses)
        self._instructions: list[_Instruction] = []
        self._given: set[_Value] = set()
        for value in order:
            if value in chosen and value.operator != "widen":
                self._append(chosen[value], chosen)

    def _append(self, instruction: _Instruction, chosen: Mapping[_Value, _Instruction]) -> None:
        if not self._given.isdisjoint(instruction.gives):
            return  # another result of it came first
        for step in _steps(instruction):
            for value in step.takes:
                if value.operator == "widen" and value not in self._given:  # no sooner than it is needed
                    self._append(chosen[value], chosen)
            self._given.update(value for value in step.gives if value is not None)
            self._instructions.append(step)

    def program(self) -> Program:
        """Return the program."""
        body = self._body
        last = {value: at for at, step in enumerate(self._instructions) for value in step.takes}
        held: dict[_Value, int] = {}
        free: list[int] = []
        count = 0
        code: list[int] = []
        for at, step in enumerate(self._instructions):
            takes = [self._place(value, held) for value in step.takes]
            # an instruction reads a tile of all its operands before it writes that tile: their registers can be reused
            free += [held.pop(value) for value in dict.fromkeys(step.takes) if value in held and last[value] == at]
            gives = []
            for value in step.gives:
                if value is None or value is body.y:
                    gives.append(_OUTPUT if value else _NOWHERE)
                    continue
                if not free:
                    free.append(count)
                    count += 1
                held[value] = free.pop()
                gives.append(held[value])
            code += [*step.head, *gives, *takes]
        parts = tuple(key for key in body.parts)
        constants = b"".join(body.constants)
        works = sum(len(step.takes) + len(step.gives) for step in self._instructions)
        return Program(
            body.name, body.element, len(body.formal), body.tensors, count, tuple(code), parts, constants, works
        )

    def _place(self, value: _Value, held: Mapping[_Value, int]) -> int:
        match value.operator:
            case "x":
                return _INPUT + value.place
            case "part":
                return _VALUE + value.place
            case "constant":
                return _VALUE + len(self._body.parts) + value.place
        return held[value]


def _steps(instruction: _Instruction) -> Iterable[_Instruction]:
    """Yield what does the same and reads no more than `_AT_ONCE` operands, or pairs of them, at a time."""
    if instruction.head[0] != _FOLD:
        yield instruction
        return
    _, kind, transform, count = instruction.head
    lead, operands = instruction.takes[: instruction.lead], instruction.takes[instruction.lead :]
    width = len(operands) // count
    so_far = lead
    if len(lead) > 1:
        so_far = (_Value("fold"),)
        yield from _steps(_Instruction((_FOLD, kind, _PLAIN, len(lead)), so_far, lead))
    if so_far:
        kind += _ONWARD
    for at in range(0, count, _AT_ONCE):
        takes = operands[at * width : (at + _AT_ONCE) * width]
        result = _Value("fold")
        gives = instruction.gives if at + _AT_ONCE >= count else (result,)
        yield _Instruction((_FOLD, kind, transform, len(takes) // width), gives, (*so_far, *takes))
        kind, so_far = instruction.head[1] + _ONWARD, (result,)


def _reached(y: _Value) -> set[_Value]:
    found, waiting = {y}, [y]
    while waiting:
        new = {operand for operand in waiting.pop().operands if operand not in found}
        found |= new
        waiting += new
    return found


Pair: TypeAlias = tuple[_Value, ...]


class _Network:
    """What becomes of minima and maxima of the same two values: `chosen`, by what they give; `inner` is in no register.

    Four of them in two layers, the second of which compares the first's minima and its maxima, are one MERGE; it takes
    in a third layer that does nothing but compare the two in the middle. Two of these and what merges their results are
    an EIGHT. Any other minimum with its maximum is an EXCHANGE. A minimum or maximum alone is none of the network's.
    """

    def __init__(self, order: Sequence[_Value], uses: Mapping[_Value, int]) -> None:
        self.chosen: dict[_Value, _Instruction] = {}
        self.inner: set[_Value] = set()
        self._uses = uses
        self._found: dict[Pair, dict[str, _Value]] = {}
        self._readers: dict[_Value, list[Pair]] = {}
        for value in order:
            if value.operator in ("Min", "Max") and len(value.operands) == 2:
                self._found.setdefault(value.operands, {}).setdefault(value.operator, value)
        for pair in self._found:
            for value in pair:
                self._readers.setdefault(value, []).append(pair)
        whole = {pair: found for pair, found in self._found.items() if len(found) == 2}
        for pair, found in whole.items():
            other = self._other(pair, found, whole)
            if other is not None:
                self._merge(pair, other)
        for merge in dict.fromkeys(self.chosen.values()):
            if merge.head == (_MERGE, 15 + _IN_ORDER) and merge.gives[0] in self.chosen:
                self._join(merge)
        for pair, found in whole.items():
            if not self._are_taken(found.values()):
                exchange = _Instruction((_EXCHANGE,), (found["Min"], found["Max"]), pair)
                self.chosen |= dict.fromkeys(found.values(), exchange)

    def _other(self, pair: Pair, found: Mapping[str, _Value], whole: Mapping[Pair, dict[str, _Value]]) -> Pair | None:
        """Return the pair that makes a MERGE with this one."""
        low, high = (self._compared_with(found[name]) for name in ("Min", "Max"))
        if low is None or high is None or low.operands == pair:
            return None
        other = low.operands
        if whole.get(other) != {"Min": low, "Max": high}:
            return None
        if self._compared_with(low) is not found["Min"] or self._compared_with(high) is not found["Max"]:
            return None
        second = [v for a in (found["Min"], found["Max"]) for v in self._comparison(a).values()]
        taken = (*found.values(), low, high, *second)
        return None if self._are_taken(taken) else other

    def _comparison(self, value: _Value) -> dict[str, _Value]:
        """Return the minimum, the maximum, or both of this value and the one it is compared with first."""
        return self._found[self._readers[value][0]]

    def _are_taken(self, values: Iterable[_Value]) -> bool:
        """Whether an instruction has one of them already."""
        return any(value in self.chosen or value in self.inner for value in values)

    def _compared_with(self, value: _Value) -> _Value | None:
        """Return the one value that this one is compared with, where nothing else is done with it."""
        pairs = self._readers.get(value, [])
        if len(pairs) != 1 or self._uses[value] != len(self._found[pairs[0]]) or pairs[0].count(value) != 1:
            return None
        return pairs[0][pairs[0][0] is value]

    def _merge(self, pair: Pair, other: Pair) -> None:
        first = self._found[pair]
        layer = [self._comparison(first[name]) for name in ("Min", "Max")]
        gives = [found.get(name) for found in layer for name in ("Min", "Max")]
        self.inner |= {*first.values(), *self._found[other].values()}
        wanted = 0
        low, high = gives[1:3]
        if low and high and self._compared_with(low) is high and self._compared_with(high) is low:
            third = self._comparison(low)
            if not self._are_taken(third.values()):
                self.inner |= {low, high}
                gives[1:3] = third.get("Min"), third.get("Max")
                wanted = _IN_ORDER
        wanted += sum(1 << i for i, value in enumerate(gives) if value)
        merge = _Instruction((_MERGE, wanted), tuple(gives), (*pair, *other))
        self.chosen |= {value: merge for value in gives if value is not None}

    def _join(self, merge: _Instruction) -> None:
        """Make an EIGHT of this merge and the one that its results are exchanged with, if they are."""
        ours = [value for value in merge.gives if value]
        theirs = [self._compared_with(value) for value in ours]
        other = self.chosen.get(theirs[0]) if theirs[0] else None
        if other is None or other is merge or other.head != merge.head or list(other.gives) != theirs:
            return
        layer = [self._comparison(value) for value in ours]
        if any(len(found) < 2 for found in layer) or [self._compared_with(v) for v in other.gives if v] != ours:
            return
        lows, highs = ([found[name] for found in layer] for name in ("Min", "Max"))
        middle = []
        for low, high in zip(lows[2:], highs[:2], strict=True):
            found = self._comparison(low) if self._compared_with(low) is high else {}
            if len(found) < 2 or self._compared_with(high) is not low:
                return
            middle.append(found)
        gives = (*lows[:2], *(found[name] for name in ("Min", "Max") for found in middle), *highs[2:])
        if self._are_taken((*lows, *highs, *gives)):
            return
        ordered = self._in_order(gives)
        self.inner |= set(gives) - set(ordered)
        for value in (*ours, *other.gives):
            if value:
                del self.chosen[value]
                self.inner.add(value)
        self.inner |= {*lows[2:], *highs[:2]}
        eight = _Instruction((_EIGHT, int(ordered != gives)), ordered, (*merge.takes, *other.takes))
        self.chosen |= dict.fromkeys(ordered, eight)

    def _in_order(self, eight: tuple[_Value, ...]) -> tuple[_Value, ...]:
        """Return what these values become if second and third, fourth and fifth, sixth and seventh are exchanged."""
        between = []
        for low, high in zip(eight[1:7:2], eight[2:7:2], strict=True):
            found = self._comparison(low) if self._compared_with(low) is high else {}
            if len(found) < 2 or self._compared_with(high) is not low or self._are_taken(found.values()):
                return eight
            between += [found["Min"], found["Max"]]
        return (eight[0], *between, eight[7])


def _chosen(order: Sequence[_Value], uses: Mapping[_Value, int]) -> dict[_Value, _Instruction]:
    """Return the instruction for each value that stands in a register; a fold takes in what only it reads."""
    network = _Network(order, uses)
    chosen, absorbed = dict(network.chosen), set(network.inner)
    for value in reversed(order):
        if value in absorbed or value in network.chosen:
            continue
        if value.operator in _OTHERS:
            chosen[value] = _Instruction((_OTHERS[value.operator],), (value,), value.operands)
            continue
        kind, terms = _FOLDS[value.operator], list(value.operands)
        while _FOLDS.get(terms[0].operator) == kind and uses[terms[0]] == 1 and terms[0] not in network.chosen:
            absorbed.add(terms[0])
            terms = [*terms[0].operands, *terms[1:]]
        inside, lead, transform = _inside(value, terms, lambda term: uses[term] == 1 and term not in network.chosen)
        takes = (*terms[:lead], *(operand for term in inside for operand in term.operands))
        absorbed.update(inside)
        count = len(inside) or len(terms)
        chosen[value] = _Instruction((_FOLD, kind, transform, count), (value,), takes if inside else tuple(terms), lead)
    return chosen


def _inside(fold: _Value, terms: list[_Value], own: Callable[[_Value], bool]) -> tuple[list[_Value], int, int]:
    """Return the terms that a fold computes on its way, how many terms stand before them, and how it computes them."""
    if all(own(term) and term.operator == "Abs" for term in terms):
        return terms, 0, _MAGNITUDE
    if all(own(term) and term.operator == "Mul" and len(term.operands) == 2 for term in terms):
        return terms, 0, _PRODUCT
    lead = len(terms)
    while lead and own(terms[lead - 1]) and _is_dual(fold, terms[lead - 1]):
        lead -= 1
    return ([], 0, _PLAIN) if lead > len(terms) - 2 else (terms[lead:], lead, _PAIRED)


def _is_dual(fold: _Value, term: _Value) -> bool:
    """Whether a minimum is of a maximum of two, or the other way round."""
    return {fold.operator, term.operator} == {"Min", "Max"} and len(term.operands) == 2


def _message(value: int | Message) -> Message:
    if isinstance(value, int):
        raise _Unfit
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
                    raise _Unfit
            case 7, Message() if value.text() not in ("", "ai.onnx"):
                raise _Unfit
    return operator, inputs, outputs, attributes


def _typed(info: Message) -> dict[str, int]:
    """Return the element type of a value, by its name."""
    fields = dict(info.fields())
    tensor = dict(_message(dict(_message(fields[2]).fields())[1]).fields())
    kind = tensor[1]
    if not isinstance(kind, int):
        raise _Unfit
    return {_message(fields[1]).text(): kind}
