"""Fused kernels against ONNX Runtime's own operators on the same body: the same bits, whatever the body is."""

import ctypes
import importlib
import itertools
import re
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import fusion_onnx
from fusion_exporters.errors import ExportError
from fusion_onnx.runtime import InputError, Session, SessionError, fused
from fusion_onnx.runtime.fused import body as fused_body
from fusion_onnx.runtime.fused import kernels

pytestmark = pytest.mark.skipif(bool(fused.why_not_fused()), reason=fused.why_not_fused())

ENTRYWISE = [name for name in fusion_onnx.names() if fusion_onnx.get(name).entrywise]
DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 6e-8, 65504.0, 3e38, -3e38]


def exported(fusion, k, width, dtype, **options):
    torch.manual_seed(0)
    xs = [torch.randn(2, width).to(dtype) for _ in range(k)]
    count = fusion.calculate_l()
    args = (xs, torch.randn(count).to(dtype)) if count else (xs,)
    return fusion_onnx.export(fusion, args, verify=False, **options).model


def drawn(session, rows, generator):
    """Values of every size, with special ones strewn in."""
    feeds = {}
    for info in session.inputs:
        shape = [rows if isinstance(size, str) else size for size in info.shape]
        values = generator.standard_normal(shape) * 10.0 ** generator.uniform(-8, 8, shape)
        special = generator.choice(SPECIAL, shape)
        with np.errstate(over="ignore", under="ignore"):
            mixed = np.where(generator.random(shape) < 0.1, special, values)
            feeds[info.name] = mixed.astype(info.dtype)
    return feeds


def why_not(model):
    """Say of each function why it has no kernel: the operators that have one are in fused/instructions.py."""
    return [fused.why_no_kernel(body.SerializeToString(), []) for body in model.functions]


def same(model, rows=(0, 1, 3, 33, 700), **options):
    """Run both ways; the kernel has to be there, and the bits are to be the same."""
    by_operators, by_kernel = Session(model, "cpu", fuse=False), Session(model, "cpu", fuse=True, **options)
    assert not by_operators.fused
    assert by_kernel.fused, why_not(model)
    assert {node.op_type for node in by_kernel.placement()} == set(by_kernel.fused)
    generator = np.random.default_rng(1)
    for count in rows:
        feeds = drawn(by_kernel, count, generator)
        (expected,) = by_operators.run(feeds)
        for level in (0, 1):
            fused.instructions(level)  # what every processor has, then the best that this one has
            (y,) = by_kernel.run(feeds)
            assert y.dtype == expected.dtype and y.shape == expected.shape
            np.testing.assert_array_equal(y, expected)
    return by_kernel


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENTRYWISE)
def test_every_strategy_in_every_form(name, dtype):
    for case in fusion_onnx.get(name).cases[: None if dtype is torch.float32 else 2]:
        fusion = fusion_onnx.create(name, dims=list(case.dims), **case.options)
        for form in fusion.forms():
            if form != "matrix":
                try:
                    model = exported(fusion, len(case.dims), case.dims[0], dtype, form=form)
                except ExportError:  # a form that has nothing to offer for this k
                    continue
                same(model)


@pytest.mark.parametrize("k", [*range(1, 12), 16, 31, 64, 200])
def test_medians_of_any_number_of_inputs(k):
    model = exported(fusion_onnx.create("median", dims=[3] * k), k, 3, torch.float32)
    same(model, rows=(5, 40))
    xs = [np.random.default_rng(i).standard_normal((50, 3)).astype("f4") for i in range(k)]
    (y,) = Session(model, "cpu").run(*xs)
    np.testing.assert_array_equal(y, np.sort(np.stack(xs), 0)[(k - 1) // 2])


def test_networks_with_something_changed():
    model = exported(fusion_onnx.create("median", dims=[6] * 16), 16, 6, torch.float32)
    (function,) = model.functions
    draw, names = np.random.default_rng(0), list(function.input)
    for i in range(40):
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in function.node]
        at = int(draw.integers(20, len(nodes) - 1))
        earlier = [*names, *(n.output[0] for n in nodes[:at])]
        if i % 4 == 0:
            nodes[at].op_type = {"Min": "Max", "Max": "Min"}[nodes[at].op_type]
        elif i % 4 == 1:
            nodes[at].input[int(draw.integers(2))] = str(draw.choice(earlier))
        elif i % 4 == 2:
            nodes[at].input[:] = list(nodes[at].input)[::-1]
        if i % 4 > 1:  # what a comparison gives is read once more
            nodes[-1].output[0] = "last"
            nodes.append(node("Max", f"last {draw.choice(earlier)}", "y"))
        same(body(nodes, names), rows=(7,))


@pytest.mark.parametrize("kind", ["Add", "Mul", "Min", "Max"])
def test_folds_of_many_operands(kind):
    for k, one in itertools.product((8, 9, 16, 17, 40), ("Identity", "Abs", "Mul")):
        names = [f"x{i}" for i in range(1, k + 1)]
        nodes = [node(one, f"{x} {x}" if one == "Mul" else x, f"{x}_") for x in names]
        last = "x1_"
        for x in names[1:]:
            nodes.append(node(kind, f"{last} {x}_", "y" if x == names[-1] else f"{x}_so_far"))
            last = f"{x}_so_far"
        same(body(nodes, names), rows=(1, 33))


@pytest.mark.parametrize(("kind", "other"), [("Min", "Max"), ("Max", "Min"), ("Min", "Min"), ("Add", "Max")])
def test_folds_of_pairs(kind, other):
    for lead, pairs in itertools.product((0, 1, 2, 9), (1, 2, 8, 9, 17)):
        names = [f"x{i}" for i in range(1, lead + 2 * pairs + 1)]
        nodes = [node(other, f"{a} {b}", f"{a}_") for a, b in zip(names[lead::2], names[lead + 1 :: 2], strict=True)]
        terms = [*names[:lead], *(f"{a}_" for a in names[lead::2])]
        so_far = terms[0]
        for at, term in enumerate(terms[1:], 1):
            nodes.append(node(kind, f"{so_far} {term}", "y" if at == len(terms) - 1 else f"s{at}"))
            so_far = f"s{at}"
        if len(terms) > 1:
            same(body(nodes, names), rows=(1, 33))


@pytest.mark.parametrize("name", ["sum", "max"])
def test_folds_of_many_float16_inputs(name):
    same(exported(fusion_onnx.create(name, dims=[5] * 17), 17, 5, torch.float16), rows=(1, 33))


def test_products_of_many_pairs_with_numbers_and_rows():
    shared = [
        constant(2.5, "two"),
        *(node("Mul", f"x{i} {'two' if i % 5 else 'gamma'}", f"m{i}") for i in range(1, 12)),
    ]
    nodes = [*shared, node("Sum", " ".join(f"m{i}" for i in range(1, 12)), "y")]
    same(body(nodes, [*(f"x{i}" for i in range(1, 12)), "gamma"], {"gamma": [6]}))


def test_large_tensors_on_two_threads_with_odd_sizes():
    model = exported(fusion_onnx.create("weighted_sum", weights=[0.3, -2.0, 0.1]), 3, 1001, torch.float32)
    same(model, rows=(4099,), threads=2)
    same(model, rows=(4099,), threads=1)


def body(nodes, inputs, kinds=None, element=TensorProto.FLOAT, output="y", extra=()):
    """A model that calls one function with this body; `kinds`: shapes of inputs that are not (n, 6)."""
    kinds = kinds or {}
    typed = [helper.make_tensor_value_info(n, element, None) for n in (*inputs, output)]
    function = helper.make_function(
        "fusion_onnx", "given", inputs, [output], nodes, [helper.make_opsetid("", 18)], value_info=[*typed, *extra]
    )
    call = helper.make_node("given", inputs, [output], domain="fusion_onnx")
    graph = helper.make_graph(
        [call],
        "g",
        [helper.make_tensor_value_info(n, element, kinds.get(n, ["batch", 6])) for n in inputs],
        [helper.make_tensor_value_info(output, element, ["batch", 6])],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("fusion_onnx", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), output.split(), **attributes)


def constant(number, output):
    return helper.make_node("Constant", [], [output], value=onnx.numpy_helper.from_array(np.float32(number)))


BODIES = {
    "every operator": [
        node("Sub", "x1 x2", "a"), node("Div", "a x3", "b"), node("Abs", "b", "c"), node("Sqrt", "c", "d"),
        node("Neg", "d", "e"), node("Identity", "e", "f"), node("Mul", "f x1", "g"), node("Max", "g x2", "h"),
        node("Min", "h x3", "i"), node("Sum", "i x1 x2", "y"),
    ],
    "a value read twice": [
        node("Mul", "x1 x1", "s"), node("Add", "s s", "t"), node("Add", "t s", "u"), node("Sum", "u x2 x3", "y"),
    ],
    "a chain on the right": [node("Add", "x1 x2", "a"), node("Add", "x3 a", "y")],
    "a chain that is read again": [node("Add", "x1 x2", "a"), node("Add", "a x3", "b"), node("Mul", "a b", "y")],
    "products of products": [
        node("Mul", "x1 x2", "a"), node("Mul", "a x3", "b"), node("Mul", "x2 x3", "c"), node("Add", "b c", "y"),
    ],
    "comparators of which halves are left": [
        node("Min", "x1 x2", "l1"), node("Max", "x1 x2", "h1"), node("Min", "x2 x3", "l2"), node("Max", "x2 x3", "h2"),
        node("Max", "l1 l2", "a"), node("Min", "h1 h2", "b"), node("Sub", "a b", "y"),
    ],
    "comparators whose inside is read again": [
        node("Min", "x1 x2", "l1"), node("Max", "x1 x2", "h1"), node("Min", "x2 x3", "l2"), node("Max", "x2 x3", "h2"),
        node("Max", "l1 l2", "a"), node("Min", "h1 h2", "b"), node("Sum", "a b l1", "y"),
    ],
    "the same comparison twice": [
        node("Min", "x1 x2", "a"), node("Min", "x1 x2", "b"), node("Max", "x1 x2", "c"), node("Sum", "a b c x3", "y"),
    ],
    "a number on either side": [
        constant(3.0, "n"), node("Sub", "n x1", "a"), node("Div", "x2 n", "b"), node("Max", "n x3", "c"),
        node("Sum", "a b c n", "y"),
    ],
    "what leads nowhere": [node("Div", "x1 x2", "unused"), node("Add", "x1 x3", "y")],
}  # fmt: skip


@pytest.mark.parametrize("nodes", BODIES.values(), ids=BODIES)
def test_bodies_of_somebody_else(nodes):
    same(body(nodes, ["x1", "x2", "x3"]))


def test_random_bodies():
    draw = np.random.default_rng(0)
    for _ in range(60):
        known, nodes, unsigned = ["x1", "x2", "x3"], [], set()
        for i in range(int(draw.integers(1, 25))):
            operator = str(draw.choice(["Add", "Mul", "Min", "Max", "Sub", "Div", "Abs", "Neg", "Sqrt", "Sum", "Max"]))
            count = {"Abs": 1, "Neg": 1, "Sqrt": 1, "Sum": int(draw.integers(1, 5))}.get(operator, 2)
            operands = list(draw.choice(known[-6:], count))
            if operator == "Div" and operands[1] in unsigned:
                operator = "Mul"  # a zero of either sign would be an infinity of either sign
            if operator in ("Min", "Max") or (operator != "Abs" and not unsigned.isdisjoint(operands)):
                unsigned.add(f"v{i}")
            nodes.append(node(operator, " ".join(operands), f"v{i}"))
            known.append(f"v{i}")
        nodes.append(node("Sum", " ".join(known[-3:]), "y"))
        same(body(nodes, ["x1", "x2", "x3"]), rows=(1, 9))


@pytest.mark.parametrize("shared", [[6], [1]], ids=["a row", "a number"])
def test_vectors_are_shared_among_rows(shared):
    nodes = [node("Mul", "x1 gamma", "a"), node("Add", "a x2", "y")]
    same(body(nodes, ["x1", "x2", "gamma"], {"gamma": shared}), rows=(1, 9, 500))


def test_a_split_vector_gives_numbers_or_rows():
    for length in (2, 12):
        nodes = [
            node("Split", "w", "a b", axis=0, num_outputs=2), node("Mul", "x1 a", "c"), node("Div", "x2 b", "d"),
            node("Sub", "c d", "y"),
        ]  # fmt: skip
        same(body(nodes, ["x1", "x2", "w"], {"w": [length]}), rows=(1, 9))


UNFIT = {
    "there is no instruction for Exp": [node("Exp", "x1", "a"), node("Add", "a x2", "y")],
    "there is no instruction for Softmax": [node("Add", "x1 x2", "a"), node("Softmax", "a", "y", axis=-1)],
    "there is no instruction for Transpose": [
        node("Transpose", "x2", "a"), node("MatMul", "x1 a", "b"), node("MatMul", "b x2", "y"),
    ],
    "Div by a Min or Max": [node("Max", "x1 x2", "a"), node("Div", "x1 a", "y")],
    "a constant that is not one number": [
        helper.make_node("Constant", [], ["n"], value=onnx.numpy_helper.from_array(np.ones((1, 1, 1), "f4"))),
        node("Sum", "x1 x2 n", "y"),
    ],
    "Mul of numbers alone": [constant(2.0, "n"), node("Mul", "n n", "m"), node("Sum", "x1 x2 m", "y")],
    "its body is malformed": [node("Add", "x1 nowhere", "y")],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "nodes"), UNFIT.items(), ids=UNFIT)
def test_other_bodies_are_left_to_onnx_runtime(reason, nodes):
    model = body(nodes, ["x1", "x2"])
    function = model.functions[0].SerializeToString()
    assert not fused.has_kernel(function, ())
    assert fused.why_no_kernel(function, ()).startswith(reason)
    assert fused.programs(model.SerializeToString()) == ()
    if "malformed" not in reason:  # ONNX Runtime refuses that, too
        assert Session(model, "cpu").fused == ()
        Session(model, "cpu").run(np.ones((2, 6), "f4"), np.ones((2, 6), "f4"))


def test_a_body_with_a_kernel_has_no_reason_against_it():
    model = body([node("Mul", "x1 gamma", "y")], ["x1", "gamma"], {"gamma": [6]})
    function = model.functions[0].SerializeToString()
    assert fused.why_no_kernel(function, [1]) == ""
    assert "not every call gives a vector as gamma" in fused.why_no_kernel(function, [])


SOURCES = Path(fused.PATH).parent


def enumerators(source):
    """The constants of the enums in a C source, by name."""
    constants = {}
    text = re.sub(r"/\*.*?\*/", "", (SOURCES / source).read_text(), flags=re.DOTALL)
    for inside in re.findall(r"\benum\s*{([^}]*)}", text):
        number = -1
        for item in filter(None, map(str.strip, inside.split(","))):
            name, _, expression = (part.strip() for part in item.partition("="))
            shifted = re.fullmatch(r"(\d+) << (\d+)", expression)
            number = (
                number + 1 if not expression else int(expression) if not shifted else int(shifted[1]) << int(shifted[2])
            )
            constants[name] = number
    return constants


def test_python_and_c_have_the_same_constants():
    constants = enumerators("entrywise.h")
    assert constants.pop("OPERAND_KIND") == 7 << 20  # a mask, which only C needs
    of_python = vars(importlib.import_module("fusion_onnx.runtime.fused.instructions"))  # not the function
    assert {name: of_python.get(name) for name in constants} == constants
    public = {name for name in of_python if name.isupper() and name[0] != "_" and isinstance(of_python[name], int)}
    assert public == constants.keys()
    (refusal,) = re.findall(r'#define REFUSAL "(.*)"', (SOURCES / "operator.c").read_text())
    assert refusal == fused.REFUSAL
    elements = enumerators("operator.c")
    assert [elements[name] for name in ("FLOAT", "HALF", "DOUBLE")] == [*fused_body._UNPACK]


C_TYPES = {
    "int32_t": ctypes.c_int32,
    "size_t": ctypes.c_size_t,
    "const char *": ctypes.c_char_p,
    "void *": ctypes.c_void_p,
    "const int32_t *": ctypes.POINTER(ctypes.c_int32),
    "const double *": ctypes.POINTER(ctypes.c_double),
    "void *const *": ctypes.POINTER(ctypes.c_void_p),
}


@pytest.mark.parametrize(
    ("source", "name", "structure"),
    [("entrywise.h", "program", kernels._CProgram), ("operator.c", "op_library", kernels._OpLibrary)],
)
def test_python_and_c_have_the_same_structures(source, name, structure):
    text = re.sub(r"/\*.*?\*/", "", (SOURCES / source).read_text(), flags=re.DOTALL)
    (inside,) = re.findall(rf"typedef struct {{([^}}]*)}} {name};", text)
    fields = []
    for declaration in filter(None, map(str.strip, inside.split(";"))):
        kind, first, others = re.fullmatch(r"(.*?)(\w+)((?:, \w+)*)", declaration).groups()
        fields += [(field, C_TYPES[kind.strip()]) for field in (first, *others.split(", ")[1:])]
    assert tuple(fields) == structure._fields_


def test_a_vector_of_unknown_rank_and_float16_arithmetic_are_left_to_onnx_runtime():
    nodes = [node("Mul", "x1 gamma", "y")]
    assert Session(body(nodes, ["x1", "gamma"], {"gamma": ["batch", 6]}), "cpu").fused == ()
    half = body([node("Add", "x1 x2", "a"), node("Mul", "a x2", "y")], ["x1", "x2"], element=TensorProto.FLOAT16)
    assert Session(half, "cpu").fused == ()


def test_another_body_is_another_kernel():
    ones, twos = np.ones((2, 6), "f4"), np.full((2, 6), 2, "f4")
    for operator, expected in {"Add": 3, "Mul": 2, "Max": 2, "Min": 1, "Sub": -1}.items():
        (y,) = Session(body([node(operator, "x1 x2", "y")], ["x1", "x2"]), "cpu", fuse=True).run(ones, twos)
        assert (y == expected).all()


def test_fusions_inside_a_network_and_beside_others():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(5, 8), torch.nn.Linear(4, 8)
            self.median = fusion_onnx.create("median", dims=[8, 8, 8])
            self.low_rank = fusion_onnx.FusionLayer(fusion_onnx.create("low_rank_concatenation", dims=[8, 8], n=8))
            self.learned = fusion_onnx.FusionLayer(fusion_onnx.create("learned_weighted_sum", dims=[8, 8]))

        def forward(self, x, y):
            a, b = self.a(x), self.b(y)
            return self.learned(self.median([a, b, self.low_rank(a, b)]), a)

    torch.manual_seed(3)
    net = Net().eval()
    result = fusion_onnx.export(net, (torch.randn(3, 5), torch.randn(3, 4)))
    assert result.verdict
    by_kernel, by_operators = Session(result, "cpu"), Session(result, "cpu", fuse=False)
    assert set(by_kernel.fused) == {"median_k3", "learned_weighted_sum_k2"}
    x, y = torch.randn(50, 5), torch.randn(50, 4)
    assert torch.equal(by_kernel.run(x, y)[0], by_operators.run(x, y)[0])


def test_many_sessions_of_many_models_at_once():
    models = [exported(fusion_onnx.create(name), 3, 4, torch.float32) for name in ("sum", "max", "median", "l2_norm")]
    sessions = [Session(model, "cpu") for model in models for _ in range(3)]
    x = [np.float32([[3, 0, 0, 1]]), np.float32([[4, 0, 2, 1]]), np.float32([[0, 5, 1, 1]])]
    expected = [[7, 5, 3, 3], [4, 5, 2, 1], [3, 0, 1, 1], [5, 5, 5**0.5, 3**0.5]]
    for session, y in zip(sessions, itertools.chain.from_iterable([y] * 3 for y in expected), strict=True):
        np.testing.assert_allclose(session.run(*x)[0][0], y, rtol=1e-6)


def test_inputs_that_disagree_are_refused_where_names_of_axes_do_not_tell():
    nodes = [node("Add", "x1 x2", "y")]
    model = body(nodes, ["x1", "x2"], {"x1": ["a", 6], "x2": ["b", 6]})
    with pytest.raises(SessionError, match="more than one shape"):
        Session(model, "cpu", fuse=True).run(np.ones((2, 6), "f4"), np.ones((1, 6), "f4"))
    with pytest.raises((SessionError, InputError)):
        Session(body(nodes, ["x1", "x2"]), "cpu", fuse=True).run(np.ones((2, 6), "f4"), np.ones((1, 6), "f4"))
    vector = body([node("Mul", "x1 w", "y")], ["x1", "w"], {"w": ["l"]})
    with pytest.raises(SessionError, match="one number, or as long as the last axis"):
        Session(vector, "cpu", fuse=True).run(np.ones((2, 6), "f4"), np.ones(4, "f4"))


ADD, SCALE = [node("Add", "x1 x2", "y")], [node("Mul", "x1 gamma", "y")]
IGNORE = [node("Abs", "x1", "y")]
SHAPES = {
    "one row for all": (ADD, {"x1": ["a", 6], "x2": ["b", 6]}, [(4, 6), (1, 6)]),
    "a declared row for all": (ADD, {"x2": [1, 6]}, [(4, 6), (1, 6)]),
    "a number for all": (ADD, {"x2": []}, [(4, 6), ()]),
    "a column made wider": (SCALE, {"x1": ["a", "b"], "gamma": ["c"]}, [(4, 1), (6,)]),
    "no rows, made wider": (SCALE, {"x1": ["a", "b"], "gamma": ["c"]}, [(0, 1), (6,)]),
    "a number made a vector": (SCALE, {"x1": [], "gamma": ["c"]}, [(), (1,)]),
    "w of two axes": ([node("Mul", "x1 w", "y")], {"w": ["c", 6]}, [(4, 6), (4, 6)]),
    "many axes": (SCALE, {"x1": [*[1] * 16, "a", 6], "gamma": [6]}, [(1,) * 16 + (2, 6), (6,)]),
    "an input that is not used": (IGNORE, {"x2": ["c"]}, [(4, 6), (3,)]),
}


@pytest.mark.parametrize(("nodes", "kinds", "shapes"), SHAPES.values(), ids=SHAPES)
def test_shapes_that_a_kernel_is_not_for_are_left_to_the_body(nodes, kinds, shapes):
    names = sorted({name for one in nodes for name in one.input} | set(kinds), key=lambda name: name != "x1")
    model = body(nodes, names, kinds)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = [np.random.default_rng(0).standard_normal(shape).astype("f4") for shape in shapes]
    (expected,) = Session(model, "cpu", fuse=False).run(*feeds)
    session = Session(model, "cpu")
    for call in (session.run, session.run, lambda *xs: session.bind(*xs)()):
        (y,) = call(*feeds)
        assert y.shape == expected.shape
        np.testing.assert_array_equal(y, expected)
    assert session.fused == ()


def test_a_refusal_before_the_first_bound_call_and_with_static_instances():
    model = body(ADD, ["x1", "x2"], {"x1": ["a", 6], "x2": ["b", 6]})
    x, row = np.ones((4, 6), "f4"), np.ones((1, 6), "f4")
    assert (Session(model, "cpu").bind(x, row)()[0] == 2).all()
    session = Session(model, "cpu", static_shapes=2)
    for feeds in [(x, x)] * 3 + [(x, row)] * 3 + [(x, x)] * 3:
        assert (session.run(*feeds)[0] == 2).all()
    with pytest.raises(SessionError, match="failed in run"):  # the body refuses it too
        session.run(x, np.ones((3, 6), "f4"))


def test_constants_that_are_equal_or_equal_nothing_have_kernels_of_their_own():
    x = np.ones((2, 6), "f4")
    for zero, infinity in ((0.0, np.inf), (-0.0, -np.inf), (0.0, np.inf)):
        (y,) = Session(body([constant(zero, "n"), node("Div", "x1 n", "y")], ["x1"]), "cpu", fuse=True).run(x)
        assert (y == infinity).all()
    nan = body([constant(np.nan, "n"), node("Add", "x1 n", "y")], ["x1"])
    before = len(kernels._registered)
    for _ in range(3):
        assert np.isnan(Session(nan, "cpu", fuse=True).run(x)[0]).all()
    assert len(kernels._registered) <= before + 1


def test_what_follows_a_fusion_learns_its_shape_from_the_data():
    for shape in (None, [None, 6], ["n", 6]):
        model = body(ADD, ["x1", "x2"], {"x1": shape, "x2": shape})
        after = [node("Concat", "y y", "twice", axis=0), node("given", "twice twice", "z"), node("Shape", "z", "s")]
        after[1].domain = "fusion_onnx"
        model.graph.node.extend(after)
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.INT64, [2]))
        for rows in (3, 5):
            x = np.ones((rows, 6), "f4")
            assert Session(model, "cpu", fuse=True).run(x, x)[0].tolist() == [2 * rows, 6]


def test_overloads_of_a_function_are_left_to_onnx_runtime():
    model = body(ADD, ["x1", "x2"])
    model.functions.append(model.functions[0])
    model.functions[0].overload, model.functions[1].overload = "a", "b"
    model.functions[1].node[0].op_type = "Mul"
    second = helper.make_node("given", ["y", "y"], ["z"], domain="fusion_onnx", overload="b")
    model.graph.node[0].overload = "a"
    model.graph.node.append(second)
    model.graph.output[0].name = "z"
    session = Session(model, "cpu")
    x = np.full((2, 6), 3, "f4")
    assert session.fused == ()
    assert (session.run(x, x)[0] == 36).all()


def test_thousands_of_constants_on_a_small_stack():
    nodes = [one for i in range(1500) for one in (constant(i + 0.5, f"c{i}"),)]
    nodes.append(node("Sum", " ".join(["x1", *(f"c{i}" for i in range(1500))]), "y"))
    session = Session(body(nodes, ["x1"]), "cpu", fuse=True, threads=1)
    results = []
    size = threading.stack_size(128 << 10)
    try:
        thread = threading.Thread(target=lambda: results.append(session.run(np.zeros((1, 6), "f4"))[0]))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert (results[0] == sum(i + 0.5 for i in range(1500))).all()


def test_calls_that_leave_inputs_out_are_refused():
    for actual in (["x1", ""], ["x1"], ["", "x2"]):
        model = body([node("Add", "x1 x2", "y")], ["x1", "x2"])
        model.graph.node[0].input[:] = actual
        with pytest.raises(SessionError):
            Session(model, "cpu").run(np.ones((2, 6), "f4"), np.ones((2, 6), "f4"))


def test_asked_for_where_it_cannot_be():
    import onnxruntime

    model = exported(fusion_onnx.create("sum"), 2, 4, torch.float32)
    with pytest.raises(SessionError, match="session_options"):
        Session(model, "cpu", fuse=True, session_options=onnxruntime.SessionOptions())
    assert Session(model, "cpu", session_options=onnxruntime.SessionOptions()).fused == ()


def test_without_the_library_sessions_do_without(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "PATH", tmp_path / "entrywise.so")
    model = exported(fusion_onnx.create("sum"), 2, 4, torch.float32)
    assert "no compiled kernels" in fused.why_not_fused()
    assert Session(model, "cpu").fused == ()
    with pytest.raises(SessionError, match="C compiler"):
        Session(model, "cpu", fuse=True)


def test_a_wrong_kernel_fails_the_verdict(monkeypatch):
    """Verification runs both, so a kernel that is wrong cannot hide behind a body that is right."""
    right = fused.programs

    def wrong(source):
        return tuple(p._replace(code=(0, 2, *p.code[2:])) for p in right(source))  # a minimum in place of a sum

    fusion = fusion_onnx.create("sum", dims=[4, 4])
    model = exported(fusion, 2, 4, torch.float32)
    inputs = ([torch.randn(3, 4), torch.randn(3, 4)],)
    assert fusion_onnx.verify(fusion, model, inputs)
    monkeypatch.setattr(fused, "programs", wrong)
    verdict = fusion_onnx.verify(fusion, model, inputs)
    assert not verdict and "fused" in str(verdict.reasons[0])


def test_hostile_functions_are_no_programs():
    model = body([node("Add", "x1 x2", "y")], ["x1", "x2"])
    data = model.SerializeToString()
    draw = np.random.default_rng(0)
    for _ in range(3000):
        mutant = bytearray(data)
        for at in draw.integers(0, len(data), 2):
            mutant[at] = draw.integers(0, 256)
        for cut in (bytes(mutant), bytes(mutant[: draw.integers(1, len(data))])):
            try:
                fusion_onnx.runtime.read_header(cut)
            except SessionError:
                continue
            for program in fused.programs(cut):
                places = [w & 0xFFFFF for w in program.code]
                assert max(places) < max(1024, program.registers)
    looped = onnx.ModelProto.FromString(data)
    looped.functions[0].node[0].input[0] = "y"
    assert fused.programs(looped.SerializeToString()) == ()


def test_the_float16_conversions_round_as_numpy():
    """Every float16, and float32s between and beside them, through a kernel that widens, adds 0, and narrows."""
    fusion = fusion_onnx.create("mean", dims=[256])
    session = Session(exported(fusion, 1, 256, torch.float16), "cpu", fuse=True)
    added = Session(exported(fusion_onnx.create("sum"), 2, 256, torch.float16), "cpu", fuse=True)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 256)
    draw = np.random.default_rng(0)
    for level in (0, 1):
        fused.instructions(level)
        np.testing.assert_array_equal(session.run(every)[0], every)
        for _ in range(10):
            a, b = (draw.integers(0, 1 << 16, (256, 256), dtype=np.uint16).view(np.float16) for _ in range(2))
            with np.errstate(over="ignore", invalid="ignore"):
                expected = (a.astype(np.float32) + b.astype(np.float32)).astype(np.float16)
            np.testing.assert_array_equal(added.run(a, b)[0], expected)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no C compiler by these names")
def test_the_library_compiles_and_says_why_not(tmp_path, monkeypatch):
    from fusion_onnx.runtime.fused import build

    assert build.compile_library(tmp_path / "made.so") == ""
    assert (tmp_path / "made.so").stat().st_size > 10_000
    monkeypatch.setenv("CC", "false")
    assert build.compile_library(tmp_path / "not.so").startswith("false failed")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in build.compile_library(tmp_path / "not.so")
    assert fused.PATH.endswith(build.LIBRARY)


def test_threads_that_bring_shapes_without_a_kernel_at_once():
    model = body([node("Add", "x1 x2", "y")], ["x1", "x2"], {"x1": ["a", 6], "x2": ["b", 6]})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x, row = np.ones((4, 6), np.float32), np.ones((1, 6), np.float32)
    for _ in range(20):
        session, together = Session(model, "cpu", threads=1), threading.Barrier(8)
        results = []

        def one(session=session, together=together, results=results):
            together.wait()
            try:
                results.append(session.run(x, row)[0].sum())
            except SessionError as error:
                results.append(error)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [48.0] * 8
        assert session.fused == ()
