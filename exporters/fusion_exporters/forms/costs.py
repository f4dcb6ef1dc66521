"""What a form costs: operations, bytes and weights, read off its body; and the rule that turns them into a time.

The rule, the same for every strategy: a form's time is the sum over the operators of its body of

    overhead + max(operations / rate, bytes / bandwidth),

and what a call costs that computes nothing. An operator that goes over its inputs in several passes reads and writes
its result in each. On a GPU every pass is a launch and has the overhead, a view is none, and what would be computed in
place elsewhere is copied first: the addend of a Gemm, and a view that is the result.

Where a session has fused kernels, a body that is entrywise throughout is one pass instead: one overhead,
and the bytes of its inputs and its output; which of two such forms is taken is decided as if there were none, for
sessions without them.

Operators on constants cost nothing, since the runtime folds them when it loads the model; views cost the overhead
alone. Every value has the width of its own type: bodies over float16 compute in float32. The rates are a provider's
(`RATES`): measured once on the kind of machine that each entry names, they have to be right about which form is faster,
not about the time itself. `fusion-onnx tune` measures instead.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from fusion_onnx.runtime.fused import has_kernel
from fusion_onnx.runtime.fused.body import OPERATORS

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape"})
_VARIADIC = frozenset({"Sum", "Max", "Min", "Mean"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Conv"})


@dataclass(frozen=True)
class Rates:
    """A provider: seconds per call and operator, operations and bytes per second.

    call: of an empty model; overhead: of one operator. matrix: multiplications and additions per second in matrix
    products. near, far: bytes per second while all that the fusion touches fits into `cache` bytes, and beyond.
    inputs_per_pass: of an operator. launches: whether each pass and copy is launched by itself. fuses: whether the
    provider fuses entrywise operators into one pass. streaming: bytes per second of a fused kernel beyond the cache, 0
    where there is none.
    """

    call: float
    overhead: float
    matrix: float
    near: float
    far: float
    cache: int
    inputs_per_pass: int = 2
    launches: bool = False
    fuses: bool = False
    streaming: float = 0.0


RATES: Mapping[str, Rates] = {
    "cpu": Rates(call=3e-6, overhead=3e-7, matrix=1e11, near=4.5e10, far=1.2e10, cache=8 << 20, streaming=3e10),
    "cuda": Rates(
        call=2e-5, overhead=5e-6, matrix=3e13, near=2e12, far=2e12, cache=0, inputs_per_pass=8, launches=True
    ),
    "openvino": Rates(call=2e-5, overhead=3e-7, matrix=1e11, near=4.5e10, far=1.2e10, cache=8 << 20, fuses=True),
}
"""By the provider's short name: two cores of a server's CPU; an H100, from its data sheet; the first with fusing."""


@dataclass(frozen=True)
class Work:
    """What one operator does: its type, operations, bytes read and written, and its number of inputs.

    It goes over more than two inputs in several passes. copy_bytes: of what a GPU copies for it.
    """

    operator: str
    operations: int
    bytes: int
    inputs: int = 1
    copy_bytes: int = 0

    def passes(self, rates: Rates) -> int:
        """Return how often it goes over memory to compute."""
        return max(-(-(self.inputs - 1) // (rates.inputs_per_pass - 1)), 1)

    def launches(self, rates: Rates) -> int:
        """Return how often it has the overhead: once, but on a GPU for each pass and copy."""
        if not rates.launches:
            return 1
        return (0 if self.operator in _VIEWS else self.passes(rates)) + (self.copy_bytes > 0)

    def bytes_moved(self, rates: Rates) -> float:
        """Return the bytes read and written in all passes, each of which but the last leaves its result to the next."""
        values = self.inputs + 1
        again = 2 * (self.passes(rates) - 1) / values
        return self.bytes * (1 + again) + (2 * self.copy_bytes if rates.launches else 0)


@dataclass(frozen=True)
class Cost:
    """What a body costs at given sizes: operations, bytes read and written, operators, and the weights it holds.

    inputs: the bytes of its inputs and its output. kernel: whether sessions that have fused kernels have one for it.
    """

    operations: int
    bytes: int
    operators: int
    weights: int
    work: tuple[Work, ...] = ()
    inputs: int = 0
    kernel: bool = False

    def seconds(self, rates: Rates, blocks: bool = False) -> float:
        """Return the rule's estimate; blocks: whether rows are computed in blocks that stay in the cache."""
        # what is written has to be held as well as what is read, and both stay where they are between two operators
        bandwidth = rates.near if blocks or self.inputs <= rates.cache else rates.far
        total, fused = rates.call, 0
        for work in self.work:
            if rates.fuses and work.operator not in _PRODUCTS:
                fused += 1
                continue
            computed = max(work.operations / rates.matrix, work.bytes_moved(rates) / bandwidth)
            total += work.launches(rates) * rates.overhead + computed
        return total + (rates.overhead + self.inputs / bandwidth if fused else 0.0)

    def seconds_with_kernels(self, rates: Rates, blocks: bool = False) -> float:
        """Return the rule's estimate for a session that has fused kernels."""
        if not rates.streaming or not self.kernel:
            return self.seconds(rates, blocks)
        bandwidth = rates.near if self.inputs <= rates.cache else rates.streaming
        return rates.call + rates.overhead + self.inputs / bandwidth

    def to_dict(self) -> dict[str, int]:
        """Return the four numbers as plain data."""
        return {key: getattr(self, key) for key in ("operations", "bytes", "operators", "weights")}


def cost(proto: onnx.FunctionProto, inputs: Sequence[tuple[Sequence[int], bool]], dtype: ir.DataType) -> Cost:
    """Return what a body costs; inputs: the shape of each of its inputs, and whether it is constant."""
    sizes = {name: tuple(shape) for name, (shape, _) in zip(proto.input, inputs, strict=True)}
    constants = {name for name, (_, is_constant) in zip(proto.input, inputs, strict=True) if is_constant}
    inner_shapes, types = _inferred(proto, sizes, dtype)
    shapes = {**sizes, **inner_shapes}
    work, weights = [], set[str]()

    def size(names: Iterable[str]) -> int:
        return sum(int(types.get(name, dtype).itemsize) * math.prod(shapes.get(name, ())) for name in names)

    for node in proto.node:
        operands = [name for name in node.input if name]
        if node.op_type == "Constant" or (operands and all(name in constants for name in operands)):
            constants.update(node.output)
            continue
        weights.update(name for name in operands if name in constants)
        if node.op_type in _VIEWS:
            work.append(Work(node.op_type, 0, 0, copy_bytes=size(name for name in node.output if name in proto.output)))
            continue
        entries = [math.prod(shapes.get(name, ())) for name in (*operands, *node.output)]
        operations = _operations(node, shapes, entries)
        bytes_moved = size([*dict.fromkeys(operands), *node.output])
        arity = len(operands) if node.op_type in _VARIADIC else 1
        addend = node.input[2:] if node.op_type == "Gemm" else []
        work.append(Work(node.op_type, operations, bytes_moved, arity, size(addend)))
    ends = {n for node in proto.node for n in node.input if n in sizes and n not in constants} | set(proto.output)
    floats = [name for name in weights if shapes.get(name) != () and types.get(name) != ir.DataType.INT64]
    weight_count = sum(math.prod(shapes.get(name, ())) for name in floats)
    return Cost(
        sum(w.operations for w in work),
        sum(w.bytes for w in work),
        len(work),
        weight_count,
        tuple(work),
        size(ends),
        _has_kernel(proto, [i for i, (shape, _) in enumerate(inputs) if len(shape) == 1]),
    )


def _has_kernel(proto: onnx.FunctionProto, vectors: Sequence[int]) -> bool:
    """Ask the kernels' compiler, where the operators' names leave it open."""
    possible = all(node.op_type in OPERATORS for node in proto.node)
    return possible and has_kernel(proto.SerializeToString(), vectors)


def _inferred(
    proto: onnx.FunctionProto, sizes: Mapping[str, tuple[int, ...]], dtype: ir.DataType
) -> tuple[dict[str, tuple[int, ...]], dict[str, ir.DataType]]:
    """Return the shape and the type of every value in the body, as far as ONNX's shape inference can tell.

    What is int64 are shapes, sizes and axes: no weights.
    """
    values = [onnx.helper.make_tensor_value_info(name, dtype.value, shape) for name, shape in sizes.items()]
    ends = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output]
    graph = onnx.helper.make_graph(list(proto.node), "body", values, ends)
    model = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=10)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # a body of somebody else's; then its inner values count for nothing
        return {}, {}
    shapes, types = {}, {}
    for value in (*inferred.value_info, *inferred.output):
        if value.type.HasField("tensor_type"):
            shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            types[value.name] = ir.DataType(value.type.tensor_type.elem_type)
    return shapes, types


def _operations(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], entries: Sequence[int]) -> int:
    """Return multiplications and additions: 2 K for an entry that is an inner product of length K, else one a pair."""
    first = shapes.get(node.input[0], ())
    if node.op_type in ("MatMul", "Gemm") and first:
        return 2 * entries[-1] * first[-1] + (entries[-1] if len(node.input) > 2 else 0)
    if node.op_type == "Einsum":
        equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
        terms = equation.partition("->")[0].split(",")
        size = {k: n for term, name in zip(terms, node.input, strict=True) for k, n in _letters(term, shapes.get(name))}
        return 2 * math.prod(size.values())
    if node.op_type in ("Concat", "Split", "Transpose", "Cast", "ConstantOfShape"):
        return 0
    return entries[-1] * max(len(node.input) - 1, 1)


def _letters(term: str, shape: Sequence[int] | None) -> Iterable[tuple[str, int]]:
    return zip(term, shape, strict=True) if shape is not None and len(shape) == len(term) else ()
