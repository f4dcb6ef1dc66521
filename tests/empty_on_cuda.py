"""Calls with an empty input: run by test_runtime_empty.py, in a process where CUDA is the stand-in."""

import itertools
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fusion_onnx import Session, create, export
from tests.cuda_standin import counted
from tests.cuda_standin.doubles import OnDevice, Stream, from_dlpack

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def torch_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch, "from_dlpack", from_dlpack)


def model(name="max", dtype=torch.float32, k=3, form="variadic"):
    xs = [torch.zeros(2, 3, dtype=dtype) for _ in range(k)]
    return export(create(name, dims=[3] * k), (xs,), form=form, verify=False).model


def tensors(rows, dtype=torch.float32, k=3, kind=OnDevice):
    return [torch.zeros(rows, 3, dtype=dtype).as_subclass(kind) for _ in range(k)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["max", "min", "sum", "mean"])
def test_nothing_is_launched_for_an_empty_batch(name, dtype):
    session = Session(model(name, dtype), "cuda")
    for rows in (0, 2, 0):
        with counted() as done:
            [y] = session.run(*tensors(rows, dtype))
        assert (y.shape, y.dtype, str(y.device)) == ((rows, 3), dtype, "cuda:0")
        assert bool(done.launches) == bool(rows)
        assert done.empty_launches == 0


def test_arrays_tensors_of_the_host_and_providers_in_options():
    options = onnxruntime.SessionOptions()
    options.add_provider("CUDAExecutionProvider", {})
    onnxruntime.set_default_logger_severity(4)
    for session in (
        Session(model(), "cuda"),
        Session(model(), ["cuda", "cpu"]),
        Session(model(), "cuda", static_shapes=2),
        Session(model(), session_options=options),
    ):
        for rows, _ in itertools.product((0, 2, 0, 2), range(2)):
            assert session.run(*[np.zeros((rows, 3), np.float32)] * 3)[0].shape == (rows, 3)
            assert session.run(*tensors(rows, kind=torch.Tensor))[0].shape == (rows, 3)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_bound_call_and_a_graph_of_nothing(cuda_graph):
    session = Session(model(), "cuda")
    outputs = torch.zeros(0, 3).as_subclass(OnDevice)
    for given in (None, outputs):
        call = session.bind(*tensors(0), outputs=given, cuda_graph=cuda_graph)
        with counted() as done:
            [y] = call()
        assert y.shape == (0, 3)
        assert given is None or y is given
        assert (done.launches, done.empty_launches, done.captures, done.graph_launches) == (0, 0, 0, 0)
    with counted() as done:
        session.bind(*tensors(2), cuda_graph=cuda_graph)()
    assert done.captures == cuda_graph


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([("Trilu", ["x"], {})], (0, 3, 3)),
        ([("ReduceSum", ["x", "axes"], {"keepdims": 0})], (3, 3)),
        ([("Trilu", ["x"], {}), ("Sum", ["y0", "x", "x"], {})], (0, 3, 3)),
    ],
)
@pytest.mark.parametrize("providers", ["cuda", ["cuda", "cpu"]])
def test_other_kernels_that_fail_on_nothing(nodes, shape, providers):
    names = [f"y{i}" for i in range(len(nodes))]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ins, [y], **more) for (op, ins, more), y in zip(nodes, names, strict=True)],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["rows", 3, 3])],
        [onnx.helper.make_tensor_value_info(names[-1], 1, None)],
        [onnx.numpy_helper.from_array(np.array([0]), "axes")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    [y] = Session(made, providers).run(torch.zeros(0, 3, 3).as_subclass(OnDevice))
    assert (tuple(y.shape), str(y.device)) == (shape, "cuda:0")
    assert not y.any()  # computed, where a sum over no rows is 0


def test_weights_beside_the_file(tmp_path):
    made = model("sum", k=2, form="chain")
    weights = onnx.numpy_helper.from_array(np.ones((1, 3), np.float32), "b")
    graph = made.graph
    graph.initializer.append(weights)
    graph.node.append(onnx.helper.make_node("Max", [graph.node[0].output[0], "b", "b"], ["z"]))
    graph.output[0].name = "z"
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    session = Session(tmp_path / "m.onnx", "cuda")
    assert session.run(*tensors(0, k=2))[0].shape == (0, 3)


def test_threads_ask_at_once():
    session = Session(model(), "cuda")
    shapes = []

    def work():
        shapes.extend(session.run(*tensors(rows))[0].shape[0] for rows in (0, 2, 0))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shapes) == [0] * 16 + [2] * 8
