"""From the body of an entrywise function to a program: instructions that run over a block of entries in the cache.

body.py reads the body, instructions.py chooses the instructions, and here they are put in order and given registers.
The program does what the body does, in the body's order, so another body is another program.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fusion_onnx.runtime._wire import Message, WireError

from .body import Body, Unfit, Value
from .instructions import Instruction, chosen_for, steps_of

_INPUT, _VALUE, _OUTPUT, _NOWHERE = 1 << 20, 2 << 20, 3 << 20, 4 << 20


class Program(NamedTuple):
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


def compile_function(function: Message, vectors: Iterable[int]) -> Program | None:
    """Return the program of a function's body, None if it is not entrywise.

    vectors: which of its inputs are known to have one axis.
    """
    try:
        body = Body(function, frozenset(vectors))
        return _Writer(body).program()
    except (Unfit, WireError, KeyError, IndexError, ValueError, struct.error):
        return None


class _Writer:
    """Chooses instructions for the values of a body, then registers for what they give."""

    def __init__(self, body: Body) -> None:
        self._body = body
        reached = _reached(body.y)
        order = [value for value in body.order if value in reached]
        uses = Counter(operand for value in order for operand in value.operands)
        chosen = chosen_for(order, uses)
        self._instructions: list[Instruction] = []
        self._given: set[Value] = set()
        for value in order:
            if value in chosen and value.operator != "widen":
                self._append(chosen[value], chosen)

    def _append(self, instruction: Instruction, chosen: Mapping[Value, Instruction]) -> None:
        if not self._given.isdisjoint(instruction.gives):
            return  # another result of it came first
        for step in steps_of(instruction):
            for value in step.takes:
                if value.operator == "widen" and value not in self._given:  # no sooner than it is needed
                    self._append(chosen[value], chosen)
            self._given.update(value for value in step.gives if value is not None)
            self._instructions.append(step)

    def program(self) -> Program:
        """Return the program."""
        body = self._body
        last = {value: at for at, step in enumerate(self._instructions) for value in step.takes}
        held: dict[Value, int] = {}
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

    def _place(self, value: Value, held: Mapping[Value, int]) -> int:
        match value.operator:
            case "x":
                return _INPUT + value.place
            case "part":
                return _VALUE + value.place
            case "constant":
                return _VALUE + len(self._body.parts) + value.place
        return held[value]


def _reached(y: Value) -> set[Value]:
    found, waiting = {y}, [y]
    while waiting:
        new = {operand for operand in waiting.pop().operands if operand not in found}
        found |= new
        waiting += new
    return found
