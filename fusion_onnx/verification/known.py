"""Differences between runtimes that are documented: each a folder with what is known, and the smallest file showing it.

A folder holds `difference.json`, `model.onnx` and `inputs.npz`. The matrix and verdicts mark what an entry covers, so
that what is not documented stands out. What ONNX Runtime's own operators do with NaN, whatever file has them, is in
`OPERATORS`, and every verdict knows it.
"""

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_onnx.file_format import DOMAIN


@dataclass(frozen=True)
class Difference:
    """One documented difference.

    kind: "differs" or "cannot". strategies, dtypes, values: patterns as fnmatch has them ("*", "NaN in *") that say
    where it shows; message: text that the runtime's error or the finding's detail contains, "" for any. operators:
    those of ONNX that have it, for networks; where the values are NaN, only if NaN reaches one of them. sizes: whether
    it decides the output's shape.
    """

    id: str
    runtime: str
    kind: str
    title: str
    why: str
    strategies: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = ("*",)
    values: tuple[str, ...] = ("*",)
    message: str = ""
    operators: tuple[str, ...] = ()
    sizes: bool = False

    def covers(self, strategy: str, runtime: str, dtype: str, kind: str, values: str, detail: str) -> bool:
        """Return whether a problem of the matrix is this difference."""
        return (
            (runtime, kind) == (self.runtime, self.kind)
            and _any(strategy, self.strategies)
            and _any(dtype, self.dtypes)
            and _any(values, self.values)
            and self.message in detail
        )


_CPU = "onnxruntime_cpu"
_NAN = ("NaN*",)
_MINUS_INF = ("-Inf*", "NaN and Inf")
OPERATORS = (
    Difference(
        "onnxruntime-nan-in-maxima-and-minima",
        _CPU,
        "differs",
        "ONNX Runtime's CPU provider loses NaN in ReduceMax, ReduceMin and MaxPool",
        "Its kernels compare, and a comparison with NaN is false: what comes out is the largest or the least of the "
        "others. amax, amin, max and max_pool of PyTorch hand NaN on. Max and Min of several inputs, which the fusions "
        "are written with, do so too.",
        strategies=(),
        values=_NAN,
        operators=("ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool"),
    ),
    Difference(
        "onnxruntime-minus-infinity-in-max-pool",
        _CPU,
        "differs",
        "ONNX Runtime's CPU provider gives the lowest finite number for MaxPool of -Inf",
        "Its kernel begins with that number, and nothing in a window that is all -Inf is larger.",
        strategies=(),
        values=_MINUS_INF,
        operators=("MaxPool",),
    ),
    Difference(
        "onnxruntime-nan-in-selections",
        _CPU,
        "differs",
        "ONNX Runtime's CPU provider does not take NaN for the largest in TopK, ArgMax and ArgMin",
        "PyTorch takes NaN for larger than any number in topk, sort and argmax, and for less in argmin; ONNX does not "
        "say where it stands, and the kernels leave it where their comparisons happen to.",
        strategies=(),
        values=_NAN,
        operators=("TopK", "ArgMax", "ArgMin"),
    ),
    Difference(
        "onnxruntime-nan-in-unique",
        _CPU,
        "differs",
        "ONNX Runtime's CPU provider loses entries beside NaN in Unique",
        "PyTorch takes each NaN for a value of its own in unique, and keeps all others; ONNX does not say what a NaN "
        "is equal to, and the kernel's order, a comparison, takes others away with it.",
        strategies=(),
        values=_NAN,
        operators=("Unique",),
        sizes=True,
    ),
    Difference(
        "onnxruntime-nan-in-recurrent-networks",
        _CPU,
        "differs",
        "ONNX Runtime's CPU provider loses NaN in LSTM and GRU",
        "Its kernels clip what their activations are given, and clipping turns NaN into a number: a step with NaN in "
        "it comes out finite, and so does what follows. PyTorch hands NaN on.",
        strategies=(),
        values=_NAN,
        operators=("LSTM", "GRU"),
    ),
    Difference(
        "torch-sign-of-nan",
        "torch_eager",
        "differs",
        "PyTorch gives 0 for the sign of NaN, ONNX NaN",
        "torch.sign compares with 0.",
        strategies=(),
        values=_NAN,
        operators=("Sign",),
    ),
)
"""What ONNX Runtime's own operators do; `docs/differences` has the smallest file of each."""


def in_network(
    differences: Iterable[Difference], model: Any, providers: Sequence[str], values: str, tensors: Sequence[Any]
) -> dict[str, str]:
    """Return the outputs that the differences of operators in the model reach on these values, each with their titles.

    Operators in fusions' bodies are not asked: their decompositions are chosen, and one that hands NaN on is to be had.

    Args:
        differences: what is known.
        model: as `verify` takes it.
        providers: what the session runs on.
        values: the class of values.
        tensors: the model's inputs.
    """
    if [*providers] != ["CPUExecutionProvider"]:
        return {}
    entries = [d for d in differences if d.runtime in (_CPU, "torch_eager") and d.operators and _any(values, d.values)]
    if not entries:
        return {}
    import onnx.inliner

    from fusion_onnx.verification.locate.graph import Graph, loaded

    proto = loaded(model)
    bodies = [(function.domain, function.name) for function in proto.functions if function.domain == DOMAIN]
    proto = onnx.inliner.inline_selected_functions(proto, bodies, exclude=True)
    graph = Graph(proto, [node.name.rpartition("/")[0] for node in proto.graph.node])
    outside = [node for i, node in enumerate(graph.nodes) if i not in graph.group_of]
    nodes = [(node, d) for d in entries for node in outside if node.op_type in d.operators]
    if not nodes:
        return {}
    arriving = graph.values_of([name for node, _ in nodes for name in node.input if name], tensors)
    titles_of: dict[str, list[str]] = {}
    for node, d in nodes:
        if any(_reach(d, arriving[name]) for name in node.input if name):
            for name in graph.after(node.output).intersection(graph.outputs):
                titles_of.setdefault(name, []).append(d.title)
    return {name: "; ".join(dict.fromkeys(titles)) for name, titles in titles_of.items()}


def _reach(difference: Difference, value: Any) -> bool:
    """Return whether values reach an operator on which the difference shows."""
    if difference.values == _NAN:
        return bool((value != value).any())
    return difference.values != _MINUS_INF or bool((value == -float("inf")).any())


def _any(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def load(folder: Path) -> list[Difference]:
    """Read all entries of a folder of differences."""
    differences = []
    for path in sorted(folder.glob("*/difference.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        differences.append(Difference(id=path.parent.name, **fields))
    return differences
