"""Which of its forms each fusion is exported in: by the cost rule, by a tuning file, or as the user requests."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir as ir

from fusion_exporters.bodies import NotOffered, build_body
from fusion_exporters.errors import ExportError
from fusion_exporters.forms.costs import RATES, Cost, cost
from fusion_exporters.forms.tuning_file import Tuning, size_of
from fusion_onnx.contract import Fusion
from fusion_onnx.runtime import Providers, alias_of, auto_providers

FormRequest: TypeAlias = str | Mapping[str, str] | os.PathLike[str]
"""What `export(form=...)` takes: "auto", "fastest", a form's name, one of these by fusion, or a tuning file's path."""

AUTO, FASTEST = "auto", "fastest"
MIN_SAVING = 0.1
"""The share of the first form's time that another form has to save, by the rule, to take its place."""


@dataclass(frozen=True)
class Choice:
    """A fusion in the form it is exported in, the reason for that form, and what each form looked at costs.

    content: the body's bytes without its name, which tell it from another of the same name.
    """

    body: ir.Function
    content: bytes
    form: str
    reason: str
    costs: Mapping[str, Cost]
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """Return what the file says about it: the form, its cost, and that of the others."""
        costs = {
            name: {**form_cost.to_dict(), "microseconds": round(self.seconds[name] * 1e6, 2)}
            for name, form_cost in self.costs.items()
        }
        facts = {"form": self.form, "by": self.reason, **costs.pop(self.form), "sizes": dict(self.sizes)}
        return {**facts, "others": costs}


@dataclass(frozen=True)
class Candidates:
    """What a fusion can be written as for a node's inputs, by the form's name: bodies, their bytes, what they cost."""

    bodies: Mapping[str, ir.Function]
    contents: Mapping[str, bytes]
    costs: Mapping[str, Cost]


@dataclass
class Chooser:
    """Chooses the form of one fusion after the other.

    requested: "auto", the cheapest form that nobody can tell from eager execution's order; "fastest", the cheapest of
    all; a form's name for every fusion that has it; or a mapping from fusions to one of these (by their paths in the
    module, or by the strategy where that is the module itself).
    provider: whose rates count. sizes: those of the symbolic axes. tuning: what `tune` measured. isolated: whether the
    model is that one fusion, which is run in blocks of rows.
    """

    requested: str | Mapping[str, str] = AUTO
    provider: str = "cpu"
    sizes: Mapping[str, int] = field(default_factory=dict)
    tuning: Tuning | None = None
    isolated: bool = False
    _candidates: dict[Any, Candidates] = field(default_factory=dict)
    _paths: set[str] = field(default_factory=set)
    _offers: list[str] = field(default_factory=list)
    _tuning_used: bool = False

    @classmethod
    def from_request(
        cls, form: FormRequest, providers: Providers, sizes: Mapping[str, int], *, isolated: bool
    ) -> "Chooser":
        """Return the chooser for what `export` takes as `form`; raises ExportError where that is none of it."""
        chooser = cls(provider=provider_of(providers), sizes=sizes, isolated=isolated)
        if isinstance(form, os.PathLike) or (isinstance(form, str) and form.endswith(".json")):
            chooser.tuning = Tuning.read(form)
        elif isinstance(form, Mapping) and all(isinstance(text, str) for text in (*form, *form.values())):
            chooser.requested = dict(form)
        elif isinstance(form, str):
            chooser.requested = form
        else:
            raise ExportError(
                'form is "auto", "fastest", the name of a form, a mapping from fusions to these, or a tuning file; '
                f"got {form!r}."
            )
        return chooser

    def __call__(
        self, fusion: Fusion, path: str, inputs: Sequence[ir.Value], count: int, opset: int, default: str = AUTO
    ) -> Choice:
        """Return the fusion of a node with these inputs, the first `count` of which are fused, in its form.

        default: what is requested where the user requests nothing else.

        Raises ExportError where a form is requested that the fusion has not, or that has nothing to offer here.
        """
        requested = self.requested if isinstance(self.requested, str) else self.requested.get(path, AUTO)
        if requested == AUTO:
            requested = default
        self._paths.add(path)
        forms = fusion.forms()
        dtype = inputs[0].dtype
        assert dtype is not None
        shapes = [(self._shape(value), _constant(value)) for value in inputs]
        key = (type(fusion), fusion.signature.config, dtype, repr(shapes), count, opset)
        if key not in self._candidates:
            self._candidates[key] = _candidates(fusion, inputs, count, opset, shapes)
        candidates = self._candidates[key]
        bodies, costs = candidates.bodies, candidates.costs
        blocks = self.isolated and fusion.entrywise and self.provider == "cpu"
        rates = RATES.get(self.provider, RATES["cpu"])
        seconds = {name: form_cost.seconds_with_kernels(rates, blocks) for name, form_cost in costs.items()}
        form, reason = None, "request"
        if requested in (AUTO, FASTEST):
            if self.tuning is not None:
                size = size_of([shape for shape, _ in shapes[:count]])
                function = next(iter(bodies.values())).name
                form = self.tuning.form(function, self.provider, *size, dtype.numpy().name)
            if form is not None and form not in forms:
                raise ExportError(
                    f"the tuning file says {form!r} for {path}, which has {', '.join(forms)}. Tune again."
                )
            self._tuning_used |= form is not None
            reason = "measurement"
            if form is None or form not in bodies:
                reason = "the cost rule"
                names = [n for n in bodies if requested == FASTEST or forms[n].drop_in]
                best = min(seconds[n] for n in names)
                names = [n for n in names if (1 - MIN_SAVING) * seconds[n] <= best]
                form = _cheapest({n: costs[n].seconds(rates, blocks) for n in names}, names)
        else:
            form = self._form_by_name(fusion, path, requested, bodies)
        return Choice(bodies[form], candidates.contents[form], form, reason, costs, seconds, self.sizes)

    def finish(self) -> None:
        """Raise ExportError where a request met no fusion."""
        if self.tuning is not None and self._paths and not self._tuning_used:
            raise ExportError(
                f"the tuning file has nothing on the module's fusions ({', '.join(sorted(self._paths))}) on the "
                f"provider {self.provider!r} in their dtypes. Tune this module, or leave the file out."
            )
        if isinstance(self.requested, Mapping):
            unknown = sorted(set(self.requested) - self._paths)
            if unknown:
                raise ExportError(
                    f"form names {unknown}, which are no fusions of the module; it has {sorted(self._paths)}."
                )
        elif self.requested not in (AUTO, FASTEST) and len(self._offers) == len(self._paths):
            raise ExportError(
                f"no fusion of the module has a form {self.requested!r} (a tuning file ends in .json). "
                + " ".join(self._offers)
            )

    def _form_by_name(self, fusion: Fusion, path: str, name: str, bodies: Mapping[str, ir.Function]) -> str:
        if name in bodies:
            return name
        offer = f"{path} ({fusion.strategy()}) offers {', '.join(bodies)} here."
        if isinstance(self.requested, Mapping):
            raise ExportError(f"no form {name!r}: {offer}")
        self._offers.append(offer)
        return next(iter(bodies))

    def _shape(self, value: ir.Value) -> list[int]:
        assert value.shape is not None
        return [size if isinstance(size, int) else self.sizes.get(str(size), 1) for size in value.shape]


def provider_of(providers: Providers) -> str:
    """Return the short name of the provider that computes first."""
    first = providers if isinstance(providers, str) else (list(providers) or ["cpu"])[0]
    name = alias_of(first if isinstance(first, str) else str(first[0]))
    return alias_of(auto_providers()[0]) if name == "auto" else name


def _candidates(
    fusion: Fusion, inputs: Sequence[ir.Value], count: int, opset: int, shapes: Sequence[tuple[list[int], bool]]
) -> Candidates:
    bodies, contents, costs = {}, {}, {}
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
        contents[name] = proto.SerializeToString(deterministic=True)
    return Candidates(bodies, contents, costs)


def _constant(value: ir.Value) -> bool:
    """Whether the runtime knows the value when it loads the model: an initializer, or computed from such alone."""
    if value.is_initializer() or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and node.domain == "" and all(v is None or _constant(v) for v in node.inputs)


def _cheapest(seconds: Mapping[str, float], names: Sequence[str]) -> str:
    best = min(names, key=lambda name: seconds[name])
    return best if seconds[best] < (1 - MIN_SAVING) * seconds[names[0]] else names[0]
