"""Which of its forms each fusion is exported in: by the cost rule, by what was measured, or as the user says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from fusion_exporters.bodies import NotOffered, build_body
from fusion_exporters.costs import RATES, Cost, cost
from fusion_exporters.inputs import ExportError
from fusion_exporters.tuning import size_of
from fusion_onnx.contract import Fusion

AUTO, FASTEST = "auto", "fastest"
NOTE = "fusion_onnx.algebra"
"""The key under which a node that algebra.py rewrote says what was done."""
_WORTH = 0.9
"""A form has to be this much faster by the rule before it takes the place of the first."""


@dataclass(frozen=True)
class Chosen:
    """A fusion in the form it is exported in, by what it was chosen, and what each form looked at costs.

    text: the body's bytes without its name, which tell it from another of the same name.
    """

    body: ir.Function
    text: bytes
    form: str
    by: str
    costs: Mapping[str, Cost]
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """Return what the file says about it: the form, its cost, and that of the others."""
        each = {
            name: {**one.to_dict(), "microseconds": round(self.seconds[name] * 1e6, 2)}
            for name, one in self.costs.items()
        }
        return {"form": self.form, "by": self.by, **each.pop(self.form), "sizes": dict(self.sizes), "others": each}


@dataclass(frozen=True)
class Candidates:
    """What a fusion can be written as for a node's inputs, by the form's name: bodies, their bytes, what they cost."""

    bodies: Mapping[str, ir.Function]
    texts: Mapping[str, bytes]
    costs: Mapping[str, Cost]


@dataclass
class Chooser:
    """Chooses the form of one fusion after the other.

    wanted: "auto", the cheapest form that nobody can tell from eager execution's order; "fastest", the cheapest of all;
    a form's name for every fusion that has it; or a mapping from fusions to one of these (by their paths in the
    module, or by the strategy where that is the module itself).
    provider: whose rates count. sizes: those of the symbolic axes. measured: what `tune` found, (function, provider,
    rows, width, dtype) to a form's name or None. alone: whether the model is that one fusion, which is run in blocks
    of rows.
    """

    wanted: str | Mapping[str, str] = AUTO
    provider: str = "cpu"
    sizes: Mapping[str, int] = field(default_factory=dict)
    measured: Callable[[str, str, int, int, str], str | None] | None = None
    alone: bool = False
    _candidates: dict[Any, Candidates] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)
    _missed: list[str] = field(default_factory=list)
    _followed: bool = False

    def __call__(
        self, fusion: Fusion, path: str, inputs: Sequence[ir.Value], count: int, opset: int, usual: str = AUTO
    ) -> Chosen:
        """Return the fusion of a node with these inputs, the first `count` of which are fused, in its form.

        usual: what is wanted where the user wants nothing else.

        Raises ExportError where a form is asked for that the fusion has not, or that has nothing to offer here.
        """
        wanted = self.wanted if isinstance(self.wanted, str) else self.wanted.get(path, AUTO)
        if wanted == AUTO:
            wanted = usual
        self._named.add(path)
        forms = fusion.forms()
        dtype = inputs[0].dtype
        assert dtype is not None
        shapes = [(self._shape(value), _constant(value)) for value in inputs]
        key = (type(fusion), fusion.signature.config, dtype, repr(shapes), count, opset)
        if key not in self._candidates:
            self._candidates[key] = _candidates(fusion, inputs, count, opset, shapes)
        candidates = self._candidates[key]
        bodies, costs = candidates.bodies, candidates.costs
        blocks = self.alone and fusion.entrywise and self.provider == "cpu"
        rates = RATES.get(self.provider, RATES["cpu"])
        seconds = {name: one.seconds_with_kernels(rates, blocks) for name, one in costs.items()}
        first = next(iter(bodies))
        found, by = None, "request"
        if wanted in (AUTO, FASTEST):
            if self.measured is not None:
                size = size_of([shape for shape, _ in shapes[:count]])
                found = self.measured(bodies[first].name, self.provider, *size, dtype.numpy().name)
            if found is not None and found not in forms:
                raise ExportError(
                    f"the tuning file says {found!r} for {path}, which has {', '.join(forms)}. Tune again."
                )
            self._followed |= found is not None
            by = "measurement"
            if found is None or found not in bodies:
                by = "the cost rule"
                among = [n for n in bodies if wanted == FASTEST or forms[n].drop_in]
                best = min(seconds[n] for n in among)
                among = [n for n in among if _WORTH * seconds[n] <= best]
                found = _cheapest({n: costs[n].seconds(rates, blocks) for n in among}, among)
        else:
            found = self._named_form(fusion, path, wanted, bodies)
        text = candidates.texts[found]
        return Chosen(bodies[found], text, found, by, costs, seconds, self.sizes)

    def finish(self) -> None:
        """Raise ExportError where a wish met no fusion."""
        if self.measured is not None and self._named and not self._followed:
            raise ExportError(
                f"the tuning file has nothing on the module's fusions ({', '.join(sorted(self._named))}) on the "
                f"provider {self.provider!r} in their dtypes. Tune this module, or leave the file out."
            )
        if isinstance(self.wanted, Mapping):
            unknown = sorted(set(self.wanted) - self._named)
            if unknown:
                raise ExportError(
                    f"form names {unknown}, which are no fusions of the module; it has {sorted(self._named)}."
                )
        elif self.wanted not in (AUTO, FASTEST) and len(self._missed) == len(self._named):
            raise ExportError(
                f"no fusion of the module has a form {self.wanted!r} (a tuning file ends in .json). "
                + " ".join(self._missed)
            )

    def _named_form(self, fusion: Fusion, path: str, wanted: str, bodies: Mapping[str, ir.Function]) -> str:
        if wanted in bodies:
            return wanted
        said = f"{path} ({fusion.strategy()}) offers {', '.join(bodies)} here."
        if isinstance(self.wanted, Mapping):
            raise ExportError(f"no form {wanted!r}: {said}")
        self._missed.append(said)
        return next(iter(bodies))

    def _shape(self, value: ir.Value) -> list[int]:
        assert value.shape is not None
        return [size if isinstance(size, int) else self.sizes.get(str(size), 1) for size in value.shape]


def _candidates(
    fusion: Fusion, inputs: Sequence[ir.Value], count: int, opset: int, shapes: Sequence[tuple[list[int], bool]]
) -> Candidates:
    bodies, texts, costs = {}, {}, {}
    dtype = inputs[0].dtype
    assert dtype is not None
    for name in fusion.forms():
        try:
            bodies[name] = build_body(fusion.in_form(name), inputs, count, fusion.signature.buffers, opset)
        except NotOffered:
            continue
        proto = ir.serde.serialize_function(bodies[name])
        costs[name] = cost(proto, shapes, dtype)
        proto.name = ""
        texts[name] = proto.SerializeToString(deterministic=True)
    return Candidates(bodies, texts, costs)


def _constant(value: ir.Value) -> bool:
    """Whether the runtime knows the value when it loads the model: an initializer, or computed from such alone."""
    if value.is_initializer() or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and node.domain == "" and all(v is None or _constant(v) for v in node.inputs)


def _cheapest(seconds: Mapping[str, float], among: Sequence[str]) -> str:
    best = min(among, key=lambda name: seconds[name])
    return best if seconds[best] < _WORTH * seconds[among[0]] else among[0]
