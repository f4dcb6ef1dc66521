"""Which of entrywise.h's instructions compute the values of a body: folds, comparators, one for any other operator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from .body import FOLDS, OTHERS, Value

FOLD, EXCHANGE, MERGE, EIGHT = 0, 1, 2, 11
_ONWARD = 4
_AT_ONCE = 8
"""How many operands a fold reads at a time: inputs often begin at the same place of a page, and then their lines share
the few ways of a set in the caches."""
_IN_ORDER = 16
_PLAIN, _MAGNITUDE, _PRODUCT, _PAIRED = 0, 1, 2, 4


class Instruction:
    """Words in front of the operands; then what it gives, and what it takes.

    lead: of a fold, how many of its operands come first, as they are, and are not counted.
    """

    __slots__ = ("gives", "head", "lead", "takes")

    def __init__(
        self, head: tuple[int, ...], gives: tuple[Value | None, ...], takes: tuple[Value, ...], lead: int = 0
    ) -> None:
        self.head, self.gives, self.takes, self.lead = head, gives, takes, lead


def steps_of(instruction: Instruction) -> Iterable[Instruction]:
    """Yield what does the same and reads no more than `_AT_ONCE` operands, or pairs of them, at a time."""
    if instruction.head[0] != FOLD:
        yield instruction
        return
    _, kind, transform, count = instruction.head
    lead, operands = instruction.takes[: instruction.lead], instruction.takes[instruction.lead :]
    width = len(operands) // count
    so_far = lead
    if len(lead) > 1:
        so_far = (Value("fold"),)
        yield from steps_of(Instruction((FOLD, kind, _PLAIN, len(lead)), so_far, lead))
    if so_far:
        kind += _ONWARD
    for at in range(0, count, _AT_ONCE):
        takes = operands[at * width : (at + _AT_ONCE) * width]
        result = Value("fold")
        gives = instruction.gives if at + _AT_ONCE >= count else (result,)
        yield Instruction((FOLD, kind, transform, len(takes) // width), gives, (*so_far, *takes))
        kind, so_far = instruction.head[1] + _ONWARD, (result,)


Pair: TypeAlias = tuple[Value, ...]


class _Network:
    """What becomes of minima and maxima of the same two values: `chosen`, by what they give; `inner` is in no register.

    Four of them in two layers, the second of which compares the first's minima and its maxima, are one MERGE; it takes
    in a third layer that does nothing but compare the two in the middle. Two of these and what merges their results are
    an EIGHT. Any other minimum with its maximum is an EXCHANGE. A minimum or maximum alone is none of the network's.
    """

    def __init__(self, order: Sequence[Value], uses: Mapping[Value, int]) -> None:
        self.chosen: dict[Value, Instruction] = {}
        self.inner: set[Value] = set()
        self._uses = uses
        self._found: dict[Pair, dict[str, Value]] = {}
        self._readers: dict[Value, list[Pair]] = {}
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
            if merge.head == (MERGE, 15 + _IN_ORDER) and merge.gives[0] in self.chosen:
                self._join(merge)
        for pair, found in whole.items():
            if not self._are_taken(found.values()):
                exchange = Instruction((EXCHANGE,), (found["Min"], found["Max"]), pair)
                self.chosen |= dict.fromkeys(found.values(), exchange)

    def _other(self, pair: Pair, found: Mapping[str, Value], whole: Mapping[Pair, dict[str, Value]]) -> Pair | None:
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

    def _comparison(self, value: Value) -> dict[str, Value]:
        """Return the minimum, the maximum, or both of this value and the one it is compared with first."""
        return self._found[self._readers[value][0]]

    def _are_taken(self, values: Iterable[Value]) -> bool:
        """Whether an instruction has one of them already."""
        return any(value in self.chosen or value in self.inner for value in values)

    def _compared_with(self, value: Value) -> Value | None:
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
        merge = Instruction((MERGE, wanted), tuple(gives), (*pair, *other))
        self.chosen |= {value: merge for value in gives if value is not None}

    def _join(self, merge: Instruction) -> None:
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
        eight = Instruction((EIGHT, int(ordered != gives)), ordered, (*merge.takes, *other.takes))
        self.chosen |= dict.fromkeys(ordered, eight)

    def _in_order(self, eight: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return what these values become if second and third, fourth and fifth, sixth and seventh are exchanged."""
        between = []
        for low, high in zip(eight[1:7:2], eight[2:7:2], strict=True):
            found = self._comparison(low) if self._compared_with(low) is high else {}
            if len(found) < 2 or self._compared_with(high) is not low or self._are_taken(found.values()):
                return eight
            between += [found["Min"], found["Max"]]
        return (eight[0], *between, eight[7])


def chosen_for(order: Sequence[Value], uses: Mapping[Value, int]) -> dict[Value, Instruction]:
    """Return the instruction for each value that stands in a register; a fold takes in what only it reads."""
    network = _Network(order, uses)
    chosen, absorbed = dict(network.chosen), set(network.inner)
    for value in reversed(order):
        if value in absorbed or value in network.chosen:
            continue
        if value.operator in OTHERS:
            chosen[value] = Instruction((OTHERS[value.operator],), (value,), value.operands)
            continue
        kind, terms = FOLDS[value.operator], list(value.operands)
        while FOLDS.get(terms[0].operator) == kind and uses[terms[0]] == 1 and terms[0] not in network.chosen:
            absorbed.add(terms[0])
            terms = [*terms[0].operands, *terms[1:]]
        transform, lead = _transform(value, terms, lambda term: uses[term] == 1 and term not in network.chosen)
        counted = takes = terms[lead:]
        if transform != _PLAIN:
            absorbed.update(counted)
            takes = [operand for term in counted for operand in term.operands]
        head = (FOLD, kind, transform, len(counted))
        chosen[value] = Instruction(head, (value,), (*terms[:lead], *takes), lead)
    return chosen


def _transform(fold: Value, terms: Sequence[Value], own: Callable[[Value], bool]) -> tuple[int, int]:
    """Return how a fold computes its terms on its way, and how many of them stand before those that it does."""
    if all(own(term) and term.operator == "Abs" for term in terms):
        return _MAGNITUDE, 0
    if all(own(term) and term.operator == "Mul" and len(term.operands) == 2 for term in terms):
        return _PRODUCT, 0
    lead = len(terms)
    while lead and own(terms[lead - 1]) and _is_dual(fold, terms[lead - 1]):
        lead -= 1
    return (_PLAIN, 0) if lead > len(terms) - 2 else (_PAIRED, lead)


def _is_dual(fold: Value, term: Value) -> bool:
    """Whether a minimum is of a maximum of two, or the other way round."""
    return {fold.operator, term.operator} == {"Min", "Max"} and len(term.operands) == 2
