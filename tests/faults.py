"""Faults planted in real exports, each with where it is and what is at fault: what `verify` and `locate` must find.

A fault changes the exported ModelProto as a wrong exporter, a wrong decomposition or a wrong edit would. `BATCH` rows.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fusion_onnx import FusionLayer, create, export

BATCH = 3


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 4)
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[4, 4], n=5, r=2))

    def forward(self, a, b):
        return self.merge(torch.tanh(self.project(a)), b)


class Views(nn.Module):
    """A nested fusion, one that is called twice, one with buffers, one with functions around it; two outputs."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.pick = create("median", dims=[5, 5, 5, 5])
        self.random = FusionLayer(
            create("random_matrix_adaptation", dims=[5, 5], n=5, r=5), init=torch.linspace(0.5, 1.5, 10)
        )
        self.size = create("l1_norm", dims=[5, 5], preprocess_functions="tanh", postprocess_functions=[nn.Sigmoid()])
        self.weigh = FusionLayer(create("learned_weighted_sum", dims=[5, 5]), init=[0.3, -0.7])
        self.head = nn.Linear(5, 3)

    def forward(self, a, b):
        h = self.encoder(a, b)
        m = self.pick([h, h * h, 1 - h, h - 2])
        m = self.pick([m * h, h, m - 1, h + 0.5])
        r = self.random(m, h)
        p = self.size([r, m])
        return self.head(self.weigh(p, r)), m


class Extremes(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = create("max", dims=[4, 4])
        self.bottom = create("min", dims=[4, 4, 4])


class Chain(nn.Module):
    """One fusion of almost every other kind after the other."""

    def __init__(self):
        super().__init__()
        self.total = create("sum", dims=[4, 4, 4])
        self.average = create("mean", dims=[4, 4, 4])
        self.product = create("prod", dims=[4, 4, 4])
        self.length = create("l2_norm", dims=[4, 4])
        self.extreme = Extremes()
        self.join = create("concatenation", dims=[4, 4])
        self.grid = FusionLayer(create("kronecker_concatenation", dims=[8, 8], n=16, p=4))
        self.weigh = FusionLayer(create("learned_weighted_sum", dims=[4, 4]), init=[0.2, 0.9])
        self.again = FusionLayer(create("learned_weighted_sum", dims=[4, 4]), init=[-0.4, 0.6])
        self.head = nn.Linear(16, 3)

    def forward(self, a, b):
        s = self.total([a, b, a * b])
        m = self.average([s, b, torch.sin(a)])
        p = self.product([m, a, b])
        d = self.length([p, m])
        e = self.extreme.top([d, s])
        f = self.extreme.bottom([e, a, b])
        c = self.join([f, p])
        again = self.again(self.weigh(f, e), d)
        return self.head(self.grid(c, 1 - c)), again


def bare(strategy, k=2, width=4, dtype=torch.float32, **options):
    """A fusion alone, its inputs, and its parameters where it has some."""
    fusion = create(strategy, dims=[width] * k, **options)
    args = ([torch.randn(BATCH, width, dtype=dtype) for _ in range(k)],)
    length = fusion.calculate_l()
    return fusion, (*args, torch.randn(length, dtype=dtype)) if length else args


SUBJECTS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "views": lambda: (Views(), (torch.randn(BATCH, 6), torch.randn(BATCH, 4))),
    "chain": lambda: (Chain(), (3 * torch.randn(BATCH, 4), 3 * torch.randn(BATCH, 4))),
    "views, float64": lambda: (
        Views().double(),
        (torch.randn(BATCH, 6, dtype=torch.float64), torch.randn(BATCH, 4, dtype=torch.float64)),
    ),
    "median": lambda: bare("median", 4),
    "max": lambda: bare("max"),
    "max, three axes": lambda: (create("max", dims=[4, 4]), ([torch.randn(2, 3, 4), torch.randn(2, 3, 4)],)),
    "min": lambda: bare("min"),
    "min, float64": lambda: bare("min", dtype=torch.float64),
    "sum": lambda: bare("sum", 3),
    "sum, float16": lambda: bare("sum", 16, dtype=torch.float16),
    "linear, float64": lambda: bare("linear_concatenation", dtype=torch.float64, n=4),
    "linear, float16": lambda: bare("linear_concatenation", 4, 16, torch.float16, n=8),
    "layer": lambda: (FusionLayer(create("low_rank_concatenation", dims=[4, 4], n=3)), (torch.randn(3, 4),) * 2),
}


FORMS = {"sum, float16": "chain"}  # a fault between two additions needs them apart


@functools.cache
def subject(name: str, inline: str = "none") -> tuple[nn.Module, tuple[Any, ...], onnx.ModelProto]:
    """The module in eval mode, its inputs, and its export, which callers copy before they change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module, args = SUBJECTS[name]()
    if name == "layer":
        args = (args[0], args[1] + 1)
    form = FORMS.get(name, "auto")
    return module.eval(), args, export(module.eval(), args, inline=inline, form=form, verify=False).model


# --- tools ------------------------------------------------------------------------------------------------------------


def the(model, name):
    """The graph's node of that name."""
    return next(n for n in model.graph.node if n.name == name)


def body(model, path):
    """Where a fusion's operators are, its function's or the graph's, and what their names begin with."""
    for node in model.graph.node:
        if node.name == path and node.domain:
            return next(f for f in model.functions if f.name == node.op_type).node, ""
    return model.graph.node, f"{path}/"


def inner(model, path, name):
    """An operator of a fusion's body."""
    nodes, prefix = body(model, path)
    return next(n for n in nodes if n.name == prefix + name)


def put(model, path, before, *nodes):
    """Insert operators into a body, before the one of that name."""
    held, prefix = body(model, path)
    at = next(i for i, n in enumerate(held) if n.name == prefix + before)
    for offset, node in enumerate(nodes):
        held.insert(at + offset, node)


def constant(prefix, name, values, dtype=np.float32):
    tensor = numpy_helper.from_array(np.asarray(values, dtype=dtype))
    return helper.make_node("Constant", [], [prefix + name], name=prefix + name, value=tensor)


def after(model, path, name, *operators):
    """Send what an operator of a body gives through more: (type, further inputs, attributes); arrays as constants."""
    held, prefix = body(model, path)
    at = next(i for i, n in enumerate(held) if n.name == prefix + name)
    out, value = held[at].output[0], f"{prefix}{name}_raw"
    held[at].output[0] = value
    new, counts = [], {}
    for i, (kind, inputs, attributes) in enumerate(operators):
        counts[kind] = counts.get(kind, 0) + 1
        given = [value]
        for j, extra in enumerate(inputs):
            if not isinstance(extra, str):
                extra = np.asarray(extra)
                new.append(constant(prefix, f"{name}_c{i}{j}", extra, extra.dtype))
                extra = new[-1].output[0]
            given.append(prefix + extra if isinstance(extra, str) and not extra.startswith(prefix) else extra)
        value = out if i == len(operators) - 1 else f"{prefix}{name}_t{i}"
        new.append(
            helper.make_node(kind, given, [value], name=f"{prefix}{kind.lower()}_{counts[kind] + 90}", **attributes)
        )
    for offset, node in enumerate(new, 1):
        held.insert(at + offset, node)


def becomes(model, path, name, kind):
    """Make an operator one of another type, on its first input alone if that is Identity."""
    node = inner(model, path, name)
    node.op_type = kind
    if kind == "Identity":
        del node.input[1:]


def change(model, name, how):
    """Change the numbers of an initialiser."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(how(values)), name))


def at(values, index, how):
    values[index] = how(values[index])
    return values


def append(model, output, kind, *inputs, name, **attributes):
    """Send one of the graph's outputs through one operator more, which is none of a fusion's."""
    for node in model.graph.node:
        for i, value in enumerate(node.output):
            if value == output:
                node.output[i] = f"{output}_raw"
        for i, value in enumerate(node.input):
            if value == output:
                node.input[i] = f"{output}_raw"
    model.graph.node.append(helper.make_node(kind, [f"{output}_raw", *inputs], [output], name=name, **attributes))


def swap(strings, i, j):
    strings[i], strings[j] = strings[j], strings[i]


# --- the faults -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    name: str
    subject: str
    plant: Callable[[onnx.ModelProto], Any] = field(repr=False)
    fault: str
    fusion: str
    node: str = ""
    inline: str = "none"
    spoil: Callable[[list[torch.Tensor]], Any] | None = None

    def inputs(self):
        """The subject's inputs, with the values that show the fault."""
        _, args, _ = subject(self.subject, self.inline)
        if self.spoil is None:
            return args
        xs = [x.clone() for x in args[0]]
        self.spoil(xs)
        return (xs, *args[1:])

    def model(self):
        """The export with the fault in it."""
        twin = onnx.ModelProto()
        twin.CopyFrom(subject(self.subject, self.inline)[2])
        self.plant(twin)
        return twin


FAULTS: list[Fault] = []
BOTH = ("none", "all")


def fault(name, subject, fault, fusion, node="", inline=("none",), spoil=None):
    """Register a fault, once for each way of inlining."""

    def register(plant):
        for way in (inline,) if isinstance(inline, str) else inline:
            title = name if way == "none" else f"{name}, inlined"
            FAULTS.append(Fault(title, subject, plant, fault, fusion, node, way, spoil))
        return plant

    return register


def spoilt(value, i=0):
    """Put a value into one of the inputs."""

    def spoil(xs):
        xs[i][1, 1] = value

    return spoil


@fault("parts joined in the wrong order", "views", "body", "encoder.merge", "encoder.merge/concat_1", BOTH)
def _(model):
    swap(inner(model, "encoder.merge", "concat_1").input, 0, 1)


@fault("concatenated on the batch axis", "chain", "body", "join", "join/concat_1", BOTH)
def _(model):
    inner(model, "join", "concat_1").attribute[0].i = 0


@fault("concatenated on the batch axis before a product", "views", "body", "encoder.merge", "encoder.merge/concat_1")
def _(model):
    inner(model, "encoder.merge", "concat_1").attribute[0].i = 0


@fault("parameters cut in the wrong places", "views", "body", "encoder.merge")
def _(model):
    sizes = inner(model, "encoder.merge", "constant_1").attribute[0].t
    sizes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(sizes)[::-1].copy()))


@fault("upper median", "views", "body", "pick")
@fault("upper median", "median", "body", "median")
def _(model):
    nodes = body(model, "pick" if len(model.graph.node) > 3 else "median")[0]
    for node in nodes:
        node.op_type = {"Min": "Max", "Max": "Min"}[node.op_type]


@fault("one comparator of the second call turned round", "views", "body", "pick", "pick_2/max_2", "all")
def _(model):  # of the third and fourth input: the first two are never the least ones here
    inner(model, "pick_2", "max_2").op_type = "Min"


@fault("min for max", "chain", "body", "extreme.top", "extreme.top/max_1", BOTH)
def _(model):
    inner(model, "extreme.top", "max_1").op_type = "Min"


@fault("a weight off by a hundred ulp", "views", "weights", "encoder.merge", "encoder.merge", BOTH)
def _(model):
    change(model, "encoder.merge.w", lambda w: at(w, int(np.abs(w).argmax()), lambda x: x * (1 + 100 * 2.0**-23)))


@fault("a weight off by four hundred ulp of float64", "views, float64", "weights", "encoder.merge", "encoder.merge")
def _(model):
    change(model, "encoder.merge.w", lambda w: at(w, int(np.abs(w).argmax()), lambda x: x * (1 + 400 * 2.0**-52)))


@fault("weights in the wrong order", "views", "weights", "weigh", "weigh", BOTH)
def _(model):
    change(model, "weigh.w", lambda w: w[::-1])


@fault("another fusion's weights", "chain", "weights", "again", "again")
def _(model):
    the(model, "again").input[2] = "weigh.w"


@fault("another fusion's weights", "chain", "weights", "again", "again", "all")
def _(model):
    inner(model, "again", "split_1").input[0] = "weigh.w"


@fault("the random matrix of another seed", "views", "weights", "random", "random", BOTH)
def _(model):
    change(model, "random.fusion.b", lambda b: np.random.default_rng(1).standard_normal(b.shape, np.float32))


@fault("a layer's weights before training", "layer", "weights", "low_rank_concatenation")
def _(model):
    change(model, "w", lambda w: np.full_like(w, 0.1))


@fault("NaN lost", "max", "body", "max", "max/greater_1", spoil=spoilt(float("nan")))
def _(model):
    put(model, "max", "max_1", helper.make_node("Greater", ["x1", "x2"], ["c"], name="greater_1"))
    node = inner(model, "max", "max_1")
    node.op_type, node.name = "Where", "where_1"
    node.input[:] = ["c", "x1", "x2"]


@fault("Inf clipped", "sum", "body", "sum", "sum/clip_91", spoil=spoilt(float("inf")))
def _(model):
    largest = np.finfo(np.float32).max
    after(model, "sum", "add_2", ("Clip", [-largest, largest], {}))


@fault("the sign of Inf turned", "min, float64", "body", "min", "", BOTH, spoilt(float("-inf")))
def _(model):
    nodes, prefix = body(model, "min")
    put(
        model,
        "min",
        "min_1",
        helper.make_node("IsInf", [nodes[0].input[0]], [f"{prefix}bad"], name=f"{prefix}isinf_1"),
        helper.make_node("Abs", [nodes[0].input[0]], [f"{prefix}abs"], name=f"{prefix}abs_1"),
    )
    node = inner(model, "min", "min_1")
    where = [f"{prefix}bad", f"{prefix}abs", node.input[0]]
    put(model, "min", "min_1", helper.make_node("Where", where, [f"{prefix}x"], name=f"{prefix}where_1"))
    inner(model, "min", "min_1").input[0] = f"{prefix}x"


@fault("subnormals flushed", "min", "body", "min", "", spoil=spoilt(-1e-40))
def _(model):
    after(model, "min", "min_1", ("Identity", [], {}), ("Abs", [], {}), ("Less", [np.float32(1.2e-38)], {}))
    nodes, _ = body(model, "min")
    nodes[-1].output[0] = "tiny"
    nodes.append(constant("", "zero", 0.0))
    nodes.append(helper.make_node("Where", ["tiny", "zero", "min_1_raw"], ["y"], name="where_1"))


@fault("batch baked into a body", "views", "body", "encoder.merge", "encoder.merge/reshape_91", BOTH)
def _(model):
    after(model, "encoder.merge", "matmul_2", ("Reshape", [np.array([BATCH, 5])], {}))


@fault("batch baked into a body by broadcasting", "median", "body", "median")
def _(model):
    after(model, "median", body(model, "median")[0][-1].name, ("Expand", [np.array([BATCH, 1])], {}))


@fault("batch baked into an ordinary node", "views", "operator", "", "bake")
def _(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([BATCH, 3]), "baked"))
    append(model, "y1", "Reshape", "baked", name="bake")


@fault("a square factor transposed", "chain", "body", "grid", "grid/transpose_1", BOTH)
def _(model):
    inner(model, "grid", "transpose_1").attribute[0].ints[:] = [0, 1]


@fault("the other factor transposed", "chain", "body", "grid", "grid/transpose_91", BOTH)
def _(model):
    after(model, "grid", "reshape_1", ("Transpose", [], {"perm": [1, 0]}))


@fault("factors swapped", "chain", "body", "grid", "grid/reshape_1", BOTH)
def _(model):
    first, second = inner(model, "grid", "reshape_1"), inner(model, "grid", "reshape_2")
    first.input[0], second.input[0] = second.input[0], first.input[0]


@fault("x read column by column, as (t, q)", "chain", "body", "grid", "grid/transpose_91", BOTH)
def _(model):
    nodes, prefix = body(model, "grid")
    reshape = next(n for n in nodes if n.name.startswith(f"{prefix}reshape") and "concat_1" in n.input[0])
    after(model, "grid", reshape.name.removeprefix(prefix), ("Transpose", [], {"perm": [0, 2, 1]}))


@fault("accumulated in float16", "views", "body", "encoder.merge", "encoder.merge/cast_91", BOTH)
def _(model):
    casts = [("Cast", [], {"to": TensorProto.FLOAT16}), ("Cast", [], {"to": TensorProto.FLOAT})]
    after(model, "encoder.merge", "matmul_1", *casts)


@fault("float16 accumulated in float16", "sum, float16", "body", "sum", "sum/cast_91", BOTH)
def _(model):
    casts = [("Cast", [], {"to": TensorProto.FLOAT16}), ("Cast", [], {"to": TensorProto.FLOAT})]
    after(model, "sum", "add_7", *casts)


@fault("float16 products rounded in between", "linear, float16", "body", "linear_concatenation", inline=BOTH)
def _(model):
    casts = [("Cast", [], {"to": TensorProto.FLOAT16}), ("Mul", [np.float32(1 + 2**-9)], {})]
    after(model, "linear_concatenation", "matmul_1", casts[0], ("Cast", [], {"to": TensorProto.FLOAT}), casts[1])


@fault("float64 computed in float32", "linear, float64", "body", "linear_concatenation", inline=BOTH)
def _(model):
    casts = [("Cast", [], {"to": TensorProto.FLOAT}), ("Cast", [], {"to": TensorProto.DOUBLE})]
    after(model, "linear_concatenation", "concat_1", *casts)


@fault("an input ignored", "views", "wiring", "pick", "pick")
def _(model):
    the(model, "pick").input[1] = the(model, "pick").input[0]


@fault("an input ignored by the second call", "views", "wiring", "pick", "pick_2")
def _(model):
    the(model, "pick_2").input[0] = the(model, "pick_2").input[1]


@fault("inputs swapped", "views", "wiring", "encoder.merge", "encoder.merge")
def _(model):
    swap(the(model, "encoder.merge").input, 0, 1)


@fault("inputs of a bare fusion swapped", "linear, float64", "wiring", "linear_concatenation", "linear_concatenation")
def _(model):
    swap(model.graph.node[-1].input, 0, 1)


def last(model, path):
    return [n.name for n in model.graph.node if n.name.startswith(f"{path}/")][-1].rpartition("/")[2]


@fault("the preprocess function left out", "views", "wiring", "size", "size")
def _(model):
    the(model, "size").input[0] = the(model, "random").output[0]


@fault("an operator between fusions exchanged", "views", "operator", "", "encoder/Tanh", BOTH)
def _(model):
    the(model, "encoder/Tanh").op_type = "Sigmoid"


@fault("the bias of a linear layer changed", "views", "operator", "", "encoder.project/Gemm", BOTH)
def _(model):
    change(model, "encoder.project.bias", lambda bias: at(bias, 1, lambda x: x + 1e-3))


@fault("the last layer's bias changed", "chain", "operator", "", "head/Gemm", BOTH)
def _(model):
    change(model, "head.bias", lambda bias: at(bias, 0, lambda x: x * 1.001))


@fault("a fusion's output scaled behind it", "chain", "operator", "", "scale")
def _(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.001), "factor"))
    node = the(model, "average")
    out, node.output[0] = node.output[0], "average_raw"
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at + 1, helper.make_node("Mul", ["average_raw", "factor"], [out], name="scale"))


@fault("an output of another dtype, which nothing after it takes", "views", "body", "weigh", "weigh/cast_91", BOTH)
def _(model):
    after(model, "weigh", "add_1", ("Cast", [], {"to": TensorProto.DOUBLE}))


@fault("a bare fusion's output of another dtype", "sum", "body", "sum", "sum/cast_91")
def _(model):
    after(model, "sum", "add_2", ("Cast", [], {"to": TensorProto.DOUBLE}))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@fault("the model's output cast to another dtype", "chain", "operator", "", "widen")
def _(model):
    append(model, "y1", "Cast", name="widen", to=TensorProto.DOUBLE)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def static(model, index):
    axis = model.graph.input[index].type.tensor_type.shape.dim[0]
    axis.Clear()
    axis.dim_value = BATCH


@fault("a static axis in an input", "views", "interface", "encoder.merge", "b", BOTH)
def _(model):
    static(model, 1)


@fault("a static axis in a bare fusion's input", "median", "interface", "median", "x1")
def _(model):
    static(model, 0)


@fault("an output too many", "chain", "interface", "join", "join")
def _(model):
    value = the(model, "join").output[0]
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))


@fault("an output's rows in reverse", "chain", "operator", "", "reverse")
def _(model):
    for name, number in (("from", -1), ("to", -(2**31)), ("axis", 0), ("step", -1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
    append(model, "y1", "Slice", "from", "to", "axis", "step", name="reverse")


@fault("rows in reverse inside a body", "chain", "body", "average", "average/slice_91", BOTH)
def _(model):
    numbers = [np.array([n]) for n in (-1, -(2**31), 0, -1)]
    after(model, "average", "div_1", ("Slice", numbers, {}))


@fault("mean without the division", "chain", "body", "average", "average/div_1", BOTH)
def _(model):
    becomes(model, "average", "div_1", "Identity")


@fault("mean by k - 1", "chain", "body", "average", "average/constant_1", BOTH)
def _(model):
    inner(model, "average", "constant_1").attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(2)))


@fault("L2 without the root", "chain", "body", "length", "length/sqrt_1", BOTH)
def _(model):
    becomes(model, "length", "sqrt_1", "Identity")


@fault("L2 with a small number under the root", "chain", "body", "length", "length/add_91", BOTH)
def _(model):
    after(model, "length", "add_1", ("Add", [np.float32(1e-3)], {}))


@fault("L1 without the absolute value", "views", "body", "size", "size/abs_2", BOTH)
def _(model):
    becomes(model, "size", "abs_2", "Identity")


@fault("a rank left out", "views", "body", "encoder.merge", "encoder.merge/mul_91", BOTH)
def _(model):
    after(model, "encoder.merge", "reshape_2", ("Mul", [np.array([[1], [0]], np.float32)], {}))


@fault("the last addend dropped", "chain", "body", "total", "total/add_2", BOTH)
def _(model):
    becomes(model, "total", "add_2", "Identity")


@fault("one factor twice", "chain", "body", "product", "product/mul_2", BOTH)
def _(model):
    node = inner(model, "product", "mul_2")
    node.input[1] = inner(model, "product", "mul_1").input[0]


@fault("an output off by 2^-18", "chain", "body", "product", "product/mul_91", BOTH)
def _(model):
    after(model, "product", "mul_2", ("Mul", [np.float32(1 + 2**-18)], {}))


@fault("an output clamped at -3", "chain", "body", "total", "total/max_91", BOTH)
def _(model):
    after(model, "total", "add_2", ("Max", [np.float32(-3)], {}))


# --- what is no fault -------------------------------------------------------------------------------------------------


def another_order(model):
    """(x1 + x3) + x2 for (x1 + x2) + x3, in a network, which is held to what rounding loses."""
    first, second = inner(model, "total", "add_1"), inner(model, "total", "add_2")
    first.input[1], second.input[1] = second.input[1], first.input[1]


def another_side(model):
    """x2 + x1 for x1 + x2: the same bits."""
    swap(inner(model, "sum", "add_1").input, 0, 1)


def another_name(model):
    """An Identity more."""
    append(model, "y1", "Identity", name="renamed")


CONTROLS = [
    Fault("a sum in another order", "chain", another_order, "", ""),
    Fault("a sum in another order, inlined", "chain", another_order, "", "", inline="all"),
    Fault("addends swapped", "sum", another_side, "", ""),
    Fault("an output renamed", "chain", another_name, "", ""),
]
