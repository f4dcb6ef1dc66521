"""From the body of an entrywise function to a program: instructions that run over a block of entries in the cache.

body.py reads the body, instructions.py chooses the instructions, and here they are put in order and given registers.
The program does what the body does, in the body's order, so another body is another program.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fusion_onnx.runtime._wire import Message, WireError

from .body import Body, Unfit
from .instructions import INPUT, NOWHERE, OUTPUT, VALUE, Instruction, Value, instructions_for, steps_of

_MALFORMED = (WireError, KeyError, IndexError, ValueError, struct.error)
"""What a reader of a body meets that is not as it should be."""


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
    """Return the program of a function's body; None where there is none, for a reason that `why_no_program` gives.

    vectors: which of its inputs are known to have one axis.
    """
    try:
        return _compiled(function, vectors)
    except (Unfit, *_MALFORMED):
        return None


def why_no_program(function: Message, vectors: Iterable[int]) -> str:
    """Return why there is no program for a function's body; "" where there is one."""
    try:
        _compiled(function, vectors)
    except Unfit as error:
        return str(error)
    except _MALFORMED as error:
        return f"its body is malformed, or of a kind unknown here: {type(error).__name__}: {error}"
    return ""


def _compiled(function: Message, vectors: Iterable[int]) -> Program:
    return _Writer(Body(function, frozenset(vectors))).program()


class _Writer:
    """Chooses instructions for the values of a body, then registers for their results."""

    def __init__(self, body: Body) -> None:
        self._body = body
        ancestors = _ancestors(body.y)
        order = [value for value in body.order if value in ancestors]
        uses = Counter(operand for value in order for operand in value.operands)
        instructions = instructions_for(order, uses)
        self._steps: list[Instruction] = []
        self._results: set[Value] = set()
        for value in order:
            if value in instructions and value.operator != "widen":
                self._append(instructions[value], instructions)

    def _append(self, instruction: Instruction, instructions: Mapping[Value, Instruction]) -> None:
        if not self._results.isdisjoint(instruction.results):
            return  # another result of it came first
        for step in steps_of(instruction):
            for value in step.operands:
                if value.operator == "widen" and value not in self._results:  # no sooner than it is needed
                    self._append(instructions[value], instructions)
            self._results.update(value for value in step.results if value is not None)
            self._steps.append(step)

    def program(self) -> Program:
        """Return the program."""
        body = self._body
        last = {value: at for at, step in enumerate(self._steps) for value in step.operands}
        registers: dict[Value, int] = {}
        free: list[int] = []
        count = 0
        code: list[int] = []
        for at, step in enumerate(self._steps):
            operands = [self._operand(value, registers) for value in step.operands]
            # an instruction reads a tile of all its operands before it writes that tile: their registers can be reused
            ends = [value for value in dict.fromkeys(step.operands) if value in registers and last[value] == at]
            free += [registers.pop(value) for value in ends]
            results = []
            for value in step.results:
                if value is None or value is body.y:
                    results.append(OUTPUT if value else NOWHERE)
                    continue
                if not free:
                    free.append(count)
                    count += 1
                registers[value] = free.pop()
                results.append(registers[value])
            code += [*step.header, *results, *operands]
        parts = tuple(body.parts)
        constants = b"".join(body.constants)
        works = sum(len(step.operands) + len(step.results) for step in self._steps)
        return Program(
            body.name, body.element, len(body.formal), body.tensors, count, tuple(code), parts, constants, works
        )

    def _operand(self, value: Value, registers: Mapping[Value, int]) -> int:
        match value.operator:
            case "x":
                return INPUT + value.index
            case "part":
                return VALUE + value.index
            case "constant":
                return VALUE + len(self._body.parts) + value.index
        return registers[value]


def _ancestors(y: Value) -> set[Value]:
    """Return the values that y is computed from, and y."""
    values, queue = {y}, [y]
    while queue:
        operands = {operand for operand in queue.pop().operands if operand not in values}
        values |= operands
        queue += operands
    return values
