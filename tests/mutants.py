"""Kinds of mutants of real exports: what a wrong exporter, a wrong runtime or too little precision would give.

A kind takes an exported ModelProto and changes it, or returns False where it makes no sense. Inputs are changed between
the graph's input and the strategy's node, intermediates in the strategy's body.
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import fusion_onnx
from fusion_onnx import Case, FusionLayer, create, export

Change = Callable[[onnx.ModelProto], object]
KINDS: dict[str, tuple[Change, str]] = {}
"""Each kind's change, and the strategies that it is meant for: a part of their names, "" for all."""


def case_of(name: str) -> Case:
    """Return the first of a strategy's cases with three inputs or more, which its mutants are made of."""
    cases = fusion_onnx.get(name).cases
    return next((case for case in cases if len(case.dims) > 2), cases[0])


class Net(torch.nn.Module):
    """A small network: what it may be off is measured, not derived."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[4, 6], n=5, r=3))
        self.pick = create("median", dims=[5, 5, 5, 5])

    def forward(self, x1, x2):
        h = self.merge(x1, x2)
        return self.pick([h, 2 * h, h.abs(), -h])


def rows(dims, scale, dtype, seed=0):
    """Rows of three sizes, each 1/16 of the one before, at a scale."""
    generator = torch.Generator().manual_seed(seed)
    sizes = scale * torch.tensor([1.0, 1 / 16, 1 / 256] * 4, dtype=torch.float64).unsqueeze(-1)
    return [(sizes * torch.randn(12, d, generator=generator, dtype=torch.float64)).to(dtype) for d in dims]


@functools.cache
def subject(name: str, dtype: torch.dtype = torch.float32):
    """Return a module and its exported model."""
    if name == "network":
        module = Net().to(dtype).eval()
        return module, export(module, tuple(rows((4, 6), 1, dtype)), verify=False).model
    module = case_of(name).create(fusion_onnx.get(name))
    return module, export(module, given(name, module, 1, dtype), verify=False).model


def given(name: str, module: torch.nn.Module, scale: float, dtype: torch.dtype):
    """Return the arguments of a subject, its data at a scale, its parameters near 1."""
    if name == "network":
        return tuple(rows((4, 6), scale, dtype))
    xs, length = rows(module.dims, scale, dtype), module.calculate_l()
    generator = torch.Generator().manual_seed(7)
    return (xs, torch.randn(length, generator=generator, dtype=torch.float64).to(dtype)) if length else (xs,)


def mutants(name: str, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield every kind that makes sense for a subject, and the mutant."""
    for kind, (change, part) in KINDS.items():
        if part not in name:
            continue
        model = onnx.ModelProto()
        model.CopyFrom(subject(name, dtype)[1])
        if change(model) is not False:
            yield kind, model


# --- how a model is changed ---------------------------------------------------------------------------------------


def kind(name: str, part: str = "") -> Callable[[Change], Change]:
    def keep(change: Change) -> Change:
        KINDS[name] = change, part
        return change

    return keep


Step = Callable[[str, str, int], list[onnx.NodeProto]]
"""From a value's name to another's, in an element type."""


def constant(name: str, value, elem: int) -> onnx.NodeProto:
    array = np.asarray(value, helper.tensor_dtype_to_np_dtype(elem))
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def cast_to(elem: int) -> Step:
    def step(a, b, back):
        return [
            helper.make_node("Cast", [a], [f"{b}_low"], to=elem),
            helper.make_node("Cast", [f"{b}_low"], [b], to=back),
        ]

    return step


def with_constant(op: str, value: float) -> Step:
    return lambda a, b, elem: [constant(f"{b}_c", value, elem), helper.make_node(op, [a, f"{b}_c"], [b])]


def unary(op: str) -> Step:
    return lambda a, b, elem: [helper.make_node(op, [a], [b])]


def shortened(a, b, elem):
    """Round to the 11 bits that TF32 and float16 keep, whatever the exponent (Veltkamp's splitting)."""
    lost = (24 if elem == TensorProto.FLOAT else 53) - 11
    return [
        constant(f"{b}_c", 2.0**lost + 1, elem),
        helper.make_node("Mul", [a, f"{b}_c"], [f"{b}_p"]),
        helper.make_node("Sub", [f"{b}_p", a], [f"{b}_d"]),
        helper.make_node("Sub", [f"{b}_p", f"{b}_d"], [b]),
    ]


def noisy(a, b, elem):
    return [
        helper.make_node("RandomUniformLike", [a], [f"{b}_r"], low=-1e-5, high=1e-5, seed=1.0),
        helper.make_node("Mul", [a, f"{b}_r"], [f"{b}_n"]),
        helper.make_node("Add", [a, f"{b}_n"], [b]),
    ]


def replacing(test: Callable[[str, str, int], list[onnx.NodeProto]]) -> Step:
    """Put 0 where a test holds."""

    def step(a, b, elem):
        like = helper.make_node("Sub", [a, a], [f"{b}_u"])  # 0 but for NaN, which the outer Where never takes
        return [
            *test(a, f"{b}_t", elem),
            like,
            constant(f"{b}_0", 0, elem),
            helper.make_node("Where", [f"{b}_t", f"{b}_0", a], [b]),
        ]

    return step


def below_normal(a, b, elem):
    limit = np.finfo(helper.tensor_dtype_to_np_dtype(elem)).smallest_normal
    return [
        helper.make_node("Abs", [a], [f"{b}_a"]),
        constant(f"{b}_l", limit, elem),
        helper.make_node("Less", [f"{b}_a", f"{b}_l"], [b]),
    ]


def element(model: onnx.ModelProto) -> int:
    return model.graph.output[0].type.tensor_type.elem_type


def on_inputs(model, step, only: Callable[[str], bool] = lambda name: name.startswith("x")):
    found = [i.name for i in model.graph.input if only(i.name)]
    if not found:
        return False
    added = []
    for name in found:
        for node in model.graph.node:
            node.input[:] = [f"{name}_m" if i == name else i for i in node.input]
        added += step(name, f"{name}_m", element(model))
    _put(model.graph.node, 0, added)
    return True


def on_output(model, step):
    (last,) = [n for n in model.graph.node if "y" in n.output]
    last.output[list(last.output).index("y")] = "y_before"
    model.graph.node.extend(step("y_before", "y", element(model)))


def on_results(model, step, ops, *, final: bool):
    """Change what nodes of some types give, in every body; `final` also what the body itself gives; no shapes."""
    done = False
    for body in model.functions:
        kept = [*([] if final else body.output), *(n.output[0] for n in _made_of_shapes(body))]
        places = [i for i, n in enumerate(body.node) if n.op_type in ops and n.output[0] not in kept]
        for i in reversed(places):
            name = body.node[i].output[0]
            body.node[i].output[0] = f"{name}_before"
            _put(body.node, i + 1, step(f"{name}_before", name, element(model)))
            done = True
    return done


def on_operands(model, step, ops):
    """Change what nodes of some types take, in every body."""
    done = False
    for body in model.functions:
        for i in reversed([i for i, n in enumerate(body.node) if n.op_type in ops]):
            node, added = body.node[i], []
            for j, name in enumerate(list(node.input)):
                node.input[j] = f"{name}_{i}_{j}_m"
                added += step(name, node.input[j], element(model))
            _put(body.node, i, added)
            done = True
    return done


def renamed(model, ops: dict[str, str]):
    nodes = [n for body in model.functions for n in body.node if n.op_type in ops]
    for node in nodes:
        node.op_type = ops[node.op_type]
    return bool(nodes)


def on_weights(model, index: Callable[[int], np.ndarray]):
    """Read the parameters, an input, in another order."""
    (w,) = [i for i in model.graph.input if i.name == "w"] or [None]
    if w is None:
        return False
    order = index(w.type.tensor_type.shape.dim[0].dim_value)

    def step(a, b, elem):
        return [constant(f"{b}_i", order, TensorProto.INT64), helper.make_node("Gather", [a, f"{b}_i"], [b])]

    return on_inputs(model, step, lambda name: name == "w")


def _put(nodes, at: int, added) -> None:
    kept = list(nodes)
    del nodes[:]
    nodes.extend([*kept[:at], *added, *kept[at:]])


def _made_of_shapes(body) -> list[onnx.NodeProto]:
    """Return the nodes of a body that concatenate sizes, not tensors."""
    shapes = {value for n in body.node if n.op_type == "Shape" for value in n.output}
    return [n for n in body.node if n.op_type == "Concat" and shapes & {*n.input}]


def _divisors(model) -> list[tuple[onnx.FunctionProto, int, onnx.NodeProto]]:
    """Return each Div of a body and the constant node that it divides by."""
    return [
        (body, i, next(c for c in body.node if node.input[1] in c.output))
        for body in model.functions
        for i, node in enumerate(body.node)
        if node.op_type == "Div"
    ]


# --- too little precision -----------------------------------------------------------------------------------------

LOW = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}
SUMS = ("Add", "MatMul", "Einsum")
for _name in ("float16", "bfloat16", "float32"):
    _round = cast_to(LOW[_name])
    kind(f"{_name} inputs")(functools.partial(on_inputs, step=_round))
    kind(f"{_name} output")(functools.partial(on_output, step=_round))
    kind(f"{_name} weights")(functools.partial(on_inputs, step=_round, only=lambda name: name == "w"))
    kind(f"{_name} accumulator")(functools.partial(on_results, step=_round, ops=SUMS, final=True))
    kind(f"{_name} intermediates")(
        functools.partial(on_results, step=_round, ops=("Mul", "Min", "Max", "Abs", "Transpose", "Concat"), final=False)
    )
kind("TF32 factors")(functools.partial(on_operands, step=shortened, ops=("MatMul", "Einsum")))
kind("float16 square root")(functools.partial(on_operands, step=cast_to(LOW["float16"]), ops=("Sqrt",)))
kind("noise of 1e-5")(functools.partial(on_output, step=noisy))
kind("off by 2^-18")(functools.partial(on_output, step=with_constant("Mul", 1 + 2.0**-18)))


@kind("off by 4 ulp")
def _ulps(model):
    if any(node.op_type in ("MatMul", "Einsum") for body in model.functions for node in body.node):
        return False  # less than what the order of an inner product decides
    last = 2.0**-23 if element(model) == TensorProto.FLOAT else 2.0**-52
    return on_output(model, with_constant("Mul", 1 + 4 * last))


@kind("1e-6 of the scale added")
def _shifted(model):
    def step(a, b, elem):
        return [
            helper.make_node("Abs", [a], [f"{b}_a"]),
            helper.make_node("ReduceMax", [f"{b}_a"], [f"{b}_m"], keepdims=0),
            constant(f"{b}_c", 1e-6, elem),
            helper.make_node("Mul", [f"{b}_m", f"{b}_c"], [f"{b}_s"]),
            helper.make_node("Add", [a, f"{b}_s"], [b]),
        ]

    return on_output(model, step)


@kind("divided by way of a float16 reciprocal")
def _reciprocal(model, elem_of=TensorProto.FLOAT16):
    for body, i, divisor in _divisors(model):
        node = body.node[i]
        name = node.input[1]
        added = [helper.make_node("Reciprocal", [name], [f"{name}_r"])]
        added += cast_to(elem_of)(f"{name}_r", f"{name}_l", element(model))
        node.op_type, node.input[1] = "Mul", f"{name}_l"
        assert divisor.output[0] == name
        _put(body.node, i, added)
    return bool([n for body in model.functions for n in body.node if n.op_type == "Reciprocal"])


kind("divided by way of a bfloat16 reciprocal")(functools.partial(_reciprocal, elem_of=TensorProto.BFLOAT16))

# --- other maths --------------------------------------------------------------------------------------------------

kind("upside down")(functools.partial(renamed, ops={"Min": "Max", "Max": "Min"}))
kind("the first maximum a minimum")(
    lambda model: next(
        (
            setattr(n, "op_type", {"Min": "Max", "Max": "Min"}[n.op_type])
            for body in model.functions
            for n in body.node
            if n.op_type in ("Min", "Max")
        ),
        False,
    )
)
kind("sums for products")(functools.partial(renamed, ops={"Mul": "Add"}))
kind("sign lost")(functools.partial(on_output, step=unary("Abs")))
kind("sign of the inputs lost")(functools.partial(on_inputs, step=unary("Abs")))
kind("sign turned")(functools.partial(on_output, step=unary("Neg")))


@kind("an addend dropped")
def _dropped(model):
    for body in model.functions:
        for node in body.node:
            if node.op_type in ("Add", "Mul", "Min", "Max") and len(node.input) == 2:
                node.op_type = "Identity"
                del node.input[1]
                return True
    return False


@kind("concatenated backwards")
def _backwards(model):
    nodes = [
        n for body in model.functions for n in body.node if n.op_type == "Concat" and n not in _made_of_shapes(body)
    ]
    for node in nodes:
        node.input[:] = list(reversed(node.input))
    return bool(nodes)


@kind("an input twice")
def _twice(model):
    nodes = [n for body in model.functions for n in body.node]
    x1, x2 = next(iter(model.functions)).input[:2]
    same = model.graph.input[0].type == model.graph.input[1].type
    for node in nodes if same else []:
        node.input[:] = [x1 if i == x2 else i for i in node.input]
    return same


@kind("mean by k - 1", "mean")
def _unbiased(model):
    for _, _, divisor in _divisors(model):
        (attribute,) = divisor.attribute
        value = numpy_helper.to_array(attribute.t)
        attribute.t.CopyFrom(numpy_helper.from_array((value - 1).astype(value.dtype), attribute.t.name))
    return bool(_divisors(model))


@kind("square root left out")
def _squares(model):
    return renamed(model, {"Sqrt": "Identity"})


kind("weights backwards")(functools.partial(on_weights, index=lambda length: np.arange(length)[::-1].copy()))
kind("weights moved on by one")(functools.partial(on_weights, index=lambda length: np.roll(np.arange(length), 1)))
kind("factors swapped", "low_rank_c")(
    functools.partial(on_weights, index=lambda length: np.roll(np.arange(length), length // 2))
)
kind("factors swapped, Kronecker", "kronecker")(
    functools.partial(on_weights, index=lambda length: np.roll(np.arange(length), length // 3))
)
kind("matrix read by columns", "linear_concatenation")(
    functools.partial(on_weights, index=lambda length: np.arange(length).reshape(12, -1).T.flatten())
)


@kind("a factor not transposed back")
def _transposed(model):
    """Read the first matrix of a projection by columns: its shape is kept."""
    for body in model.functions:
        shapes = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in body.node if n.op_type == "Constant"}
        for i, node in enumerate(body.node):
            shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
            if shape is not None and len(shape) == 2 and min(shape) > 1:
                name = node.output[0]
                added = [
                    constant(f"{name}_s", shape[::-1].copy(), TensorProto.INT64),
                    helper.make_node("Reshape", [node.input[0], f"{name}_s"], [f"{name}_r"]),
                    helper.make_node("Transpose", [f"{name}_r"], [name], perm=[1, 0]),
                ]
                kept = list(body.node)
                del body.node[:]
                body.node.extend([*kept[:i], *added, *kept[i + 1 :]])
                return True
    return False


@kind("last row of the weights dropped")
def _last_row(model):
    def step(a, b, elem):
        (w,) = [i for i in model.graph.input if i.name == "w"]
        length = w.type.tensor_type.shape.dim[0].dim_value
        mask = (np.arange(length) < length - math.ceil(length / 6)).astype(np.float64)
        return [constant(f"{b}_c", mask, elem), helper.make_node("Mul", [a, f"{b}_c"], [b])]

    return on_inputs(model, step, lambda name: name == "w")


# --- special values -----------------------------------------------------------------------------------------------

SPECIAL = {"NaN lost": float("nan"), "infinity lost": float("inf"), "flushed to zero": 0.0}
kind("NaN lost")(functools.partial(on_output, step=replacing(lambda a, b, elem: [helper.make_node("IsNaN", [a], [b])])))
kind("infinity lost")(
    functools.partial(on_output, step=replacing(lambda a, b, elem: [helper.make_node("IsInf", [a], [b])]))
)
kind("flushed to zero")(functools.partial(on_inputs, step=replacing(below_normal)))
