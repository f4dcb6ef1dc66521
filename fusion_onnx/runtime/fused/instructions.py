"""The instructions of entrywise.h, and which of them compute the values of a body: folds, comparators, others.

The numbers here are those of the header, by the same names; tests/test_fused.py compares them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

FOLD, EXCHANGE, MERGE, SUBTRACT, DIVIDE, ABSOLUTE, NEGATE, ROOT, COPY, WIDEN, NARROW, EIGHT = range(12)
ADD, MULTIPLY, MINIMUM, MAXIMUM, ONWARD = range(5)
PLAIN, MAGNITUDE, PRODUCT, PAIRED = 0, 1, 2, 4
IN_ORDER = 16
INPUT, VALUE, OUTPUT, NOWHERE = 1 << 20, 2 << 20, 3 << 20, 4 << 20
FOLDS = {"Add": ADD, "Sum": ADD, "Mul": MULTIPLY, "Min": MINIMUM, "Max": MAXIMUM}
"""The operators that a FOLD computes, with its kind."""
OTHERS = {
    "Sub": SUBTRACT,
    "Div": DIVIDE,
    "Abs": ABSOLUTE,
    "Neg": NEGATE,
    "Sqrt": ROOT,
    "Identity": COPY,
    "widen": WIDEN,
    "narrow": NARROW,
}
"""The operators that have an instruction of their own; "widen" and "narrow" are casts between float16 and float32."""
_ALL_OUTPUTS = 15
_MOST_TERMS = 8
"""How many terms a fold reads at a time: inputs often begin at the same place of a page, and then their lines share
the few ways of a set in the caches."""


class Value:
    """What an operator of the body computes: of the inputs' shape, but for vectors, their parts, and constants.

    operator: ONNX's name of it, a cast ("widen", "narrow"), a source ("x", "vector", "part", "constant"), or "fold".
    index: of a source, its number. signed: whether a zero has the sign that ONNX Runtime gives it: Min and Max of 0 and
    -0 may give either.
    """

    __slots__ = ("index", "operands", "operator", "signed")

    def __init__(self, operator: str, operands: tuple["Value", ...] = (), index: int = 0, signed: bool = True) -> None:
        self.operator, self.operands, self.index, self.signed = operator, operands, index, signed

    @property
    def is_shared(self) -> bool:
        """Whether it is one number for all entries, or one for each column."""
        return self.operator in ("part", "constant")


class Instruction:
    """An instruction on values. header: its opcode, and the numbers that belong to it; None: a result nobody reads.

    prefix: of a fold, how many of its operands stand before the terms that it counts.
    """

    __slots__ = ("header", "operands", "prefix", "results")

    def __init__(
        self,
        header: tuple[int, ...],
        results: tuple[Value | None, ...],
        operands: tuple[Value, ...],
        prefix: int = 0,
    ) -> None:
        self.header, self.results, self.operands, self.prefix = header, results, operands, prefix


def steps_of(instruction: Instruction) -> Iterable[Instruction]:
    """Cut a fold into folds of at most `_MOST_TERMS` terms; yield any other instruction as it is."""
    if instruction.header[0] != FOLD:
        yield instruction
        return
    _, kind, transform, count = instruction.header
    prefix, operands = instruction.operands[: instruction.prefix], instruction.operands[instruction.prefix :]
    width = len(operands) // count
    accumulator = prefix
    if len(prefix) > 1:
        accumulator = (Value("fold"),)
        yield from steps_of(Instruction((FOLD, kind, PLAIN, len(prefix)), accumulator, prefix))
    if accumulator:
        kind += ONWARD
    for at in range(0, count, _MOST_TERMS):
        terms = operands[at * width : (at + _MOST_TERMS) * width]
        result = Value("fold")
        results = instruction.results if at + _MOST_TERMS >= count else (result,)
        yield Instruction((FOLD, kind, transform, len(terms) // width), results, (*accumulator, *terms))
        kind, accumulator = instruction.header[1] + ONWARD, (result,)


Pair: TypeAlias = tuple[Value, ...]
MinMax: TypeAlias = dict[str, Value]
"""The minimum of a pair, its maximum, or both, by the name of the operator."""


class _Network:
    """The comparators of a body: its minima and maxima of the same two values, each pair in one instruction.

    Four pairs in two layers, the second of which compares the first's minima and its maxima, are one MERGE. A third
    layer that does nothing but compare the two in the middle belongs to it. Two of these and what merges their results
    are an EIGHT. Any other minimum with its maximum is an EXCHANGE. A minimum or maximum alone is not here, but a fold.

    instructions: the instruction of each result. inner: the values that an instruction computes in no register.
    """

    def __init__(self, order: Sequence[Value], uses: Mapping[Value, int]) -> None:
        self.instructions: dict[Value, Instruction] = {}
        self.inner: set[Value] = set()
        self._uses = uses
        self._comparisons: dict[Pair, MinMax] = {}
        self._readers: dict[Value, list[Pair]] = {}
        for value in order:
            if value.operator in ("Min", "Max") and len(value.operands) == 2:
                self._comparisons.setdefault(value.operands, {}).setdefault(value.operator, value)
        for pair in self._comparisons:
            for value in pair:
                self._readers.setdefault(value, []).append(pair)
        exchanges = {pair: results for pair, results in self._comparisons.items() if len(results) == 2}
        for pair, results in exchanges.items():
            other = self._merge_partner(pair, results, exchanges)
            if other is not None:
                self._merge(pair, other)
        for merge in dict.fromkeys(self.instructions.values()):
            if merge.header == (MERGE, _ALL_OUTPUTS + IN_ORDER) and merge.results[0] in self.instructions:
                self._join(merge)
        for pair, results in exchanges.items():
            if not self._computes_any(results.values()):
                exchange = Instruction((EXCHANGE,), (results["Min"], results["Max"]), pair)
                self.instructions |= dict.fromkeys(results.values(), exchange)

    def _merge_partner(self, pair: Pair, results: MinMax, exchanges: Mapping[Pair, MinMax]) -> Pair | None:
        """Return the pair that makes a MERGE with this one."""
        low, high = (self._opponent(results[name]) for name in ("Min", "Max"))
        if low is None or high is None or low.operands == pair:
            return None
        other = low.operands
        if exchanges.get(other) != {"Min": low, "Max": high}:
            return None
        if self._opponent(low) is not results["Min"] or self._opponent(high) is not results["Max"]:
            return None
        second_layer = [v for a in (results["Min"], results["Max"]) for v in self._comparison(a).values()]
        values = (*results.values(), low, high, *second_layer)
        return None if self._computes_any(values) else other

    def _comparison(self, value: Value) -> MinMax:
        """Return the minimum, the maximum, or both of this value and the one that it is compared with first."""
        return self._comparisons[self._readers[value][0]]

    def _computes_any(self, values: Iterable[Value]) -> bool:
        """Return whether an instruction computes one of them already."""
        return any(value in self.instructions or value in self.inner for value in values)

    def _opponent(self, value: Value) -> Value | None:
        """Return the one value that this one is compared with; None where anything else reads it."""
        pairs = self._readers.get(value, [])
        if len(pairs) != 1 or self._uses[value] != len(self._comparisons[pairs[0]]) or pairs[0].count(value) != 1:
            return None
        return pairs[0][pairs[0][0] is value]

    def _merge(self, pair: Pair, other: Pair) -> None:
        first_layer = self._comparisons[pair]
        second_layer = [self._comparison(first_layer[name]) for name in ("Min", "Max")]
        results = [comparison.get(name) for comparison in second_layer for name in ("Min", "Max")]
        self.inner |= {*first_layer.values(), *self._comparisons[other].values()}
        outputs_mask = 0
        low, high = results[1:3]
        if low and high and self._opponent(low) is high and self._opponent(high) is low:
            third_layer = self._comparison(low)
            if not self._computes_any(third_layer.values()):
                self.inner |= {low, high}
                results[1:3] = third_layer.get("Min"), third_layer.get("Max")
                outputs_mask = IN_ORDER
        outputs_mask += sum(1 << i for i, value in enumerate(results) if value)
        merge = Instruction((MERGE, outputs_mask), tuple(results), (*pair, *other))
        self.instructions |= {value: merge for value in results if value is not None}

    def _join(self, merge: Instruction) -> None:
        """Make an EIGHT of this merge and the one that its results are exchanged with, if they are."""
        results = [value for value in merge.results if value]
        opponents = [self._opponent(value) for value in results]
        other = self.instructions.get(opponents[0]) if opponents[0] else None
        if other is None or other is merge or other.header != merge.header or list(other.results) != opponents:
            return
        layer = [self._comparison(value) for value in results]
        if any(len(comparison) < 2 for comparison in layer):
            return
        if [self._opponent(value) for value in other.results if value] != results:
            return
        lows, highs = ([comparison[name] for comparison in layer] for name in ("Min", "Max"))
        middle = []
        for low, high in zip(lows[2:], highs[:2], strict=True):
            comparison = self._exchange(low, high)
            if comparison is None:
                return
            middle.append(comparison)
        eight = (*lows[:2], *(comparison[name] for name in ("Min", "Max") for comparison in middle), *highs[2:])
        if self._computes_any((*lows, *highs, *eight)):
            return
        outputs = self._in_order(eight)
        self.inner |= set(eight) - set(outputs)
        for value in (*results, *other.results):
            if value:
                del self.instructions[value]
                self.inner.add(value)
        self.inner |= {*lows[2:], *highs[:2]}
        instruction = Instruction((EIGHT, int(outputs != eight)), outputs, (*merge.operands, *other.operands))
        self.instructions |= dict.fromkeys(outputs, instruction)

    def _in_order(self, eight: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return what these values become if second and third, fourth and fifth, sixth and seventh are exchanged."""
        middle = []
        for low, high in zip(eight[1:7:2], eight[2:7:2], strict=True):
            comparison = self._exchange(low, high)
            if comparison is None or self._computes_any(comparison.values()):
                return eight
            middle += [comparison["Min"], comparison["Max"]]
        return (eight[0], *middle, eight[7])

    def _exchange(self, low: Value, high: Value) -> MinMax | None:
        """Return the minimum and the maximum of two values that are compared with each other, and do nothing else."""
        if self._opponent(low) is not high or self._opponent(high) is not low:
            return None
        comparison = self._comparison(low)
        return comparison if len(comparison) == 2 else None


def instructions_for(order: Sequence[Value], uses: Mapping[Value, int]) -> dict[Value, Instruction]:
    """Return the instruction for each value that stands in a register; a fold takes in what it alone reads."""
    network = _Network(order, uses)
    instructions, inner = dict(network.instructions), set(network.inner)
    for value in reversed(order):
        if value in inner or value in network.instructions:
            continue
        if value.operator in OTHERS:
            instructions[value] = Instruction((OTHERS[value.operator],), (value,), value.operands)
            continue
        kind, terms = FOLDS[value.operator], list(value.operands)
        while FOLDS.get(terms[0].operator) == kind and uses[terms[0]] == 1 and terms[0] not in network.instructions:
            inner.add(terms[0])
            terms = [*terms[0].operands, *terms[1:]]
        transform, prefix = _transform(value, terms, lambda term: uses[term] == 1 and term not in network.instructions)
        counted = operands = terms[prefix:]
        if transform != PLAIN:
            inner.update(counted)
            operands = [operand for term in counted for operand in term.operands]
        header = (FOLD, kind, transform, len(counted))
        instructions[value] = Instruction(header, (value,), (*terms[:prefix], *operands), prefix)
    return instructions


def _transform(fold: Value, terms: Sequence[Value], is_private: Callable[[Value], bool]) -> tuple[int, int]:
    """Return the transform that a fold applies to its last terms, and how many terms stand before these."""
    if all(is_private(term) and term.operator == "Abs" for term in terms):
        return MAGNITUDE, 0
    if all(is_private(term) and term.operator == "Mul" and len(term.operands) == 2 for term in terms):
        return PRODUCT, 0
    prefix = len(terms)
    while prefix and is_private(terms[prefix - 1]) and _is_minmax_pair(fold, terms[prefix - 1]):
        prefix -= 1
    return (PLAIN, 0) if prefix > len(terms) - 2 else (PAIRED, prefix)


def _is_minmax_pair(fold: Value, term: Value) -> bool:
    """Return whether a minimum is of a maximum of two values, or the other way round."""
    return {fold.operator, term.operator} == {"Min", "Max"} and len(term.operands) == 2
