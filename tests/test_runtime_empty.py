"""Operators on many inputs, written two by two for the calls in which CUDA has nothing to launch."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fusion_onnx.runtime._empty_batch import OPERATORS, pairwise
from tests import cuda_standin

FLOAT = TensorProto.FLOAT


def ran(model, *arrays):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], arrays, strict=True)))


def rich_model():
    """Many inputs in the graph, in a function and in a branch; attributes of every wire type."""
    function = helper.make_function(
        "tests",
        "f",
        ["a", "b"],
        ["y"],
        [
            helper.make_node("LeakyRelu", ["b"], ["l"], alpha=0.25),
            helper.make_node("Min", ["a", "l", "b", "a"], ["m"]),
            helper.make_node("Sum", ["m", "a", "b"], ["y"]),
        ],
        [helper.make_opsetid("", 18)],
    )
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["x1", "x2", "c"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, ["rows", 3])],
        )
        for name, operator in (("then", "Sum"), ("else", "Max"))
    }
    nodes = [
        helper.make_node("Sum", ["x1", "x2", "c", "x1"], ["s"], name="sum"),
        helper.make_node("Max", ["s", "x2"], ["t"]),
        helper.make_node("f", ["t", "s"], ["u"], domain="tests"),
        helper.make_node("If", ["which"], ["v"], **branches),
        helper.make_node("Sum", ["u", "v", "t"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(n, FLOAT, ["rows", 3]) for n in ("x1", "x2")]
    inputs.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", FLOAT, ["rows", 3])])
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -2, 0.5], np.float32), "c"))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("tests", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def operators(holder):
    for node in holder.node:
        yield node.op_type, len(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


@pytest.mark.parametrize("which", [True, False])
@pytest.mark.parametrize("rows", [0, 5])
def test_the_model_of_pairs_computes_the_same(rows, which):
    model = rich_model().SerializeToString()
    pairs = pairwise(model)
    onnx.checker.check_model(onnx.load_from_string(pairs))
    rng = np.random.default_rng(0)
    xs = [*rng.standard_normal((2, rows, 3)).astype(np.float32), np.array(which)]
    [y], [z] = ran(model, *xs), ran(pairs, *xs)
    assert y.shape == z.shape == (rows, 3)
    np.testing.assert_array_equal(y, z)


def test_all_else_stays_byte_for_byte():
    model = rich_model()
    model.metadata_props.add(key="k", value="v")
    pairs = onnx.load_from_string(pairwise(model.SerializeToString()))
    for holder in (pairs.graph, *pairs.functions):
        assert {count for operator, count in operators(holder) if operator in OPERATORS} == {2}
    for each in (pairs, model):
        for holder in (each.graph, *each.functions):
            rest = [node for node in holder.node if node.op_type not in OPERATORS]
            for attribute in (a for node in rest for a in node.attribute if a.HasField("g")):
                del attribute.g.node[:]
            del holder.node[:]
            holder.node.extend(rest)
    assert pairs.SerializeToString() == model.SerializeToString()


def test_a_model_without_such_operators_is_left_alone():
    node = helper.make_node("Max", ["x", "x"], ["y"])
    other = helper.make_node("Sum", ["x", "x", "x"], ["z"], domain="tests")
    infos = [helper.make_tensor_value_info(n, FLOAT, [1]) for n in "xyz"]
    graph = helper.make_graph([node, other], "g", infos[:1], infos[1:])
    assert pairwise(helper.make_model(graph).SerializeToString()) is None


@pytest.mark.skipif(bool(cuda_standin.why_not()), reason=cuda_standin.why_not())
def test_on_the_stand_in():
    done = cuda_standin.run("tests/empty_on_cuda.py", "--tb=short")
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.splitlines()[-1]
