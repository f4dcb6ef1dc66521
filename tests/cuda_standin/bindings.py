"""Copies, bound calls, graphs, devices: run by test_cuda_standin.py, in a process where CUDA is the stand-in.

Kernels compute nothing there, and copies do: an Identity shows which values arrive. A copy that is not waited for has
not happened.
"""

import ctypes
import itertools
import threading
import time

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fusion_onnx import InputError, Session, SessionError, create, export
from fusion_onnx.runtime._placement import _OF_SHAPES
from fusion_onnx.runtime._probe import CPU, CUDA, available_providers, probe
from tests.cuda_standin import counted, counts
from tests.cuda_standin.doubles import OnDevice, OnSecondDevice, Stream, from_dlpack
from tests.test_runtime_torch import NUMERIC

KINDS = [np.asarray, torch.from_numpy, lambda array: torch.from_numpy(array).as_subclass(OnDevice)]
ELEMENTS = {**NUMERIC, "bfloat16": TensorProto.BFLOAT16}


@pytest.fixture(autouse=True)
def torch_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch, "from_dlpack", from_dlpack)


def identity(count=1, element=TensorProto.FLOAT):
    """Return a model whose outputs are its inputs."""
    infos = [[helper.make_tensor_value_info(f"{n}{i}", element, ["rows", 3]) for i in range(count)] for n in "xy"]
    nodes = [helper.make_node("Identity", [x.name], [y.name]) for x, y in zip(*infos, strict=True)]
    return helper.make_model(
        helper.make_graph(nodes, "g", *infos), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def fused(name, k, form="auto", **options):
    fusion = create(name, dims=[3] * k, **options)
    return export(fusion, ([torch.zeros(2, 3) for _ in range(k)],), form=form, verify=False).model


def numbers(value, rows=2):
    return np.full((rows, 3), value, np.float32)


def device(value, rows=2, kind=OnDevice):
    return torch.from_numpy(numbers(value, rows)).as_subclass(kind)


def same(x, y):
    return np.array_equal(*(v.numpy() if isinstance(v, torch.Tensor) else v for v in (x, y)))


def test_cuda_starts_and_is_what_auto_means():
    assert probe(CUDA).starts, probe(CUDA)
    assert Session(identity()).providers == [CUDA, CPU]
    assert CUDA in available_providers()


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_run_waits_for_the_copies_of_what_lies_on_the_host(first, second):
    session = Session(identity(2), "cuda")
    for value in (1, 2):
        ys = session.run(first(numbers(value)), second(numbers(-value)))
        assert [same(y, numbers(v)) for y, v in zip(ys, (value, -value), strict=True)] == [True, True]


def test_bfloat16_of_the_host_is_copied_and_waited_for():
    session = Session(identity(element=TensorProto.BFLOAT16), "cuda")
    for value in (1.0, 2.0):
        x = torch.full((2, 3), value, dtype=torch.bfloat16)
        assert torch.equal(session.run(x)[0], x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_call_sees_new_values(kind):
    session = Session(identity(2), "cuda")
    xs = [kind(numbers(0)), kind(numbers(0))]
    outputs = [kind(numbers(9)), kind(numbers(9))]
    for call in (session.bind(*xs), session.bind(*xs, outputs=outputs)):
        for value in (7, 8):
            xs[0][...], xs[1][...] = value, -value
            with counted() as done:
                ys = call()
            assert done.to_device == (0 if isinstance(xs[0], OnDevice) else 2)
            assert done.to_host == done.to_device
            assert [same(y, x) for y, x in zip(ys, xs, strict=True)] == [True, True]


def test_a_bound_bfloat16_tensor_sees_new_values():
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    call = Session(identity(element=TensorProto.BFLOAT16), "cuda").bind(x)
    for value in (7, 8):
        x[...] = value
        assert torch.equal(call()[0], x)


def test_two_sessions_and_two_bound_calls_keep_to_themselves():
    model = identity()
    calls = {value: Session(model, "cuda").bind(numbers(value)) for value in (1, 2)}
    session = Session(model, "cuda")
    calls |= {value: session.bind(numbers(value)) for value in (3, 4)}
    for _ in range(2):
        assert all(same(call()[0], numbers(value)) for value, call in calls.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_call_takes_no_more_memory(kind):
    call = Session(identity(), "cuda").bind(kind(numbers(0)))
    call()
    with counted() as done:
        for _ in range(50):
            call()
    assert done.allocations == 0


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_session_and_a_bound_call(kind):
    session = Session(identity(), "cuda")
    call = session.bind(kind(numbers(9)))
    right = []

    def work(value):
        for _ in range(50):
            right.append(same(session.run(kind(numbers(value)))[0], numbers(value)))
            right.append(same(call()[0], numbers(9)))

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 400


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_every_dtype_is_read_where_it_lies(dtype, rows):
    x = torch.ones(rows, 3).to(getattr(torch, dtype)).as_subclass(OnDevice)
    session = Session(identity(element=ELEMENTS[dtype]), ["cuda", "cpu"])
    [y] = session.run(x)
    [z] = session.bind(x)()
    for result in (y, z):
        assert (result.device, result.dtype) == (x.device, x.dtype)
        assert torch.equal(result.as_subclass(torch.Tensor), x.as_subclass(torch.Tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_at_all_is_copied_and_nothing_launched(kind):
    for model in (fused("sum", 2), fused("max", 9, "variadic"), identity(2)):
        session = Session(model, "cuda")
        xs = [kind(numbers(0, 0)) for _ in session.inputs]
        graphs = [False, True] if isinstance(xs[0], OnDevice) else [False]
        with counted() as done:
            assert session.run(*xs)[0].shape == (0, 3)
            for cuda_graph in graphs:
                assert session.bind(*xs, cuda_graph=cuda_graph)()[0].shape == (0, 3)
        assert done.launches == done.empty_launches == 0


def test_an_output_stays_on_the_gpu_and_outlives_its_session():
    session = Session(identity(), "cuda")
    x = device(5)
    with counted() as done:
        [y] = session.run(x)
    assert (done.to_device, done.to_host) == (0, 0)
    assert done.synchronisations <= 3  # the run's two, and that of the outputs
    assert y.device == x.device
    [again] = session.run(y)  # reads it where it lies
    del session
    x[...] = 6
    assert same(y, numbers(5))
    assert same(again, numbers(5))


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_a_graph_is_one_launch_and_sees_new_values():
    call = Session(fused("median", 3), "cuda").bind(*(device(0) for _ in range(3)), cuda_graph=True)
    with counted() as done:
        call()
    assert (done.graph_launches, done.launches, done.captures) == (1, 0, 0)
    assert done.synchronisations <= 2  # the run's own, and that of the outputs
    x = device(0)
    call = Session(identity(), "cuda").bind(x, cuda_graph=True)
    for value in (7, 8):
        x[...] = value
        with counted() as done:
            assert same(call()[0], numbers(value))
        assert (done.graph_launches, done.on_device, done.captures) == (1, 0, 0)


def test_graphs_of_one_set_of_sizes_share_a_session():
    session = Session(identity(), "cuda")
    xs = [device(1), device(2), device(3, rows=4)]
    with counted() as done:
        calls = [session.bind(x, cuda_graph=True) for x in xs]
    assert done.captures == 3
    assert len({id(call._session) for call in calls}) == 2
    for _ in range(2):
        assert all(same(call()[0], x) for call, x in zip(calls, xs, strict=True))


def test_each_thread_records_its_own_graph():
    x = device(1)
    call = Session(identity(), "cuda").bind(x, cuda_graph=True)
    right = []

    def work():
        right.extend(same(call()[0], x) for _ in range(3))

    with counted() as done:
        for value in (2, 3):
            x[...] = value
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert right == [True] * 6
    assert done.captures == 2
    with counted() as done:
        work()
    assert (done.captures, done.graph_launches) == (0, 3)


def test_threads_take_turns_on_graphs_of_one_session():
    session = Session(identity(), "cuda")
    calls = {value: session.bind(device(value), cuda_graph=True) for value in (1, 2)}
    right = []

    def work(value):
        right.extend(same(calls[value]()[0], numbers(value)) for _ in range(50))

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200


def make_a_session(fresh):
    Session(fused("weighted_sum", 2, weights=[0.1, 0.2]), "cuda")


def record_another_graph(fresh):
    fresh.bind(device(3), cuda_graph=True)


@pytest.mark.parametrize("act", [make_a_session, record_another_graph])
def test_nothing_takes_memory_while_a_graph_is_recorded(act):
    """CUDA gives none to any thread then, and fails both: who asks and who records."""
    pause = ctypes.c_int.in_dll(ctypes.CDLL("libcuda.so.1"), "standin_capture_microseconds")
    session, x, right = Session(identity(), "cuda"), device(2), []
    first = session.bind(x, cuda_graph=True)
    for record in (lambda: session.bind(x, cuda_graph=True), lambda: first):  # bound anew, and by its first call here
        thread = threading.Thread(target=lambda record=record: right.append(same(record()()[0], x)))
        fresh = Session(identity(), "cuda")
        pause.value = 100_000
        before = counts().captures
        thread.start()
        while counts().captures == before and thread.is_alive():
            time.sleep(0.001)
        act(fresh)
        thread.join()
        pause.value = 0
    assert right == [True, True]


def test_a_graph_reads_and_writes_what_lies_on_the_gpu():
    session = Session(identity(), "cuda")
    with pytest.raises(InputError, match="on the GPU"):
        session.bind(numbers(0), cuda_graph=True)
    empty = session.bind(device(0, rows=0), cuda_graph=True)
    assert empty()[0].shape == (0, 3)


# --- devices and options ----------------------------------------------------------------------------------------------


def test_the_second_gpu():
    session = Session(identity(), [("cuda", {"device_id": 1})])
    [y] = session.run(device(5, kind=OnSecondDevice))
    assert str(y.device) == "cuda:1"
    assert same(y, numbers(5))
    assert same(session.run(numbers(6))[0], numbers(6))
    for other, kind in ((session, OnDevice), (Session(identity(), "cuda"), OnSecondDevice)):
        for call in (other.run, other.bind):
            with pytest.raises(InputError, match=r"x0 is on cuda:\d, the session runs on cpu, cuda:\d"):
                call(device(0, kind=kind))


def test_a_session_leaves_memory_to_others_and_computes_in_full_float32():
    options = Session(identity(), "cuda")._ort_session.get_provider_options()[CUDA]
    assert (options["arena_extend_strategy"], options["use_tf32"]) == ("kSameAsRequested", "0")


def model_of(nodes, inputs, outputs, opset=18):
    infos = [[helper.make_tensor_value_info(*info) for info in infos] for infos in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_strictness_refuses_what_has_no_kernel():
    infos = [[(name, TensorProto.FLOAT, ["a", "b"])] for name in "xy"]
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inner = [
        helper.make_graph([helper.make_node(operator, ["x"], ["z"])], "g", [], [result])
        for operator in ("Relu", "Hardmax")
    ]
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner[0], else_branch=inner[1])
    condition = ("c", TensorProto.BOOL, [])
    for model in (
        model_of([helper.make_node("Hardmax", ["x"], ["y"])], *infos),
        model_of([branch], [*infos[0], condition], infos[1]),
    ):
        with pytest.raises(SessionError, match=r"Hardmax: no kernel on CUDA.*providers=\['cuda', 'cpu'\]"):
            Session(model, "cuda")
        providers = {node.op_type: node.provider for node in Session(model, ["cuda", "cpu"]).placement()}
        assert providers["Hardmax"] == CPU


def test_strictness_allows_a_shape_that_is_computed_on_the_cpu():
    """Concat has a kernel on CUDA; ONNX Runtime puts it on the CPU where it works on what a Shape gave."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], end=1),
        helper.make_node("Concat", ["rows", "rows"], ["square"], axis=0),
        helper.make_node("Expand", ["x", "square"], ["y"]),
    ]
    x, y = ("x", TensorProto.FLOAT, ["a", 1]), ("y", TensorProto.FLOAT, ["a", "b"])
    session = Session(model_of(nodes, [x], [y]), "cuda")
    providers = {node.op_type: node.provider for node in session.placement()}
    assert providers == {"Shape": CUDA, "Concat": CPU, "Expand": CUDA}
    with counted() as done:
        assert session.run(np.ones((3, 1), np.float32))[0].shape == (3, 3)
    assert (done.to_device, done.to_host) == (1, 1)  # the input and the output


def test_networks_with_dynamic_shapes_run_on_cuda_alone():
    """torch.onnx.export writes the arithmetic of their shapes out."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    model = export(layer, (torch.zeros(3, 4, 8),), dynamic={"src": {0: "batch", 1: "time"}}, verify=False).model
    [y] = Session(model, "cuda").run(np.ones((2, 5, 8), np.float32))
    assert y.shape == (2, 5, 8)


AXES = {
    "Gather": [[0]],
    "Slice": [[0], [1]],
    "Squeeze": [[0]],
    "Unsqueeze": [[0]],
    "Reshape": [[-1]],
    "Expand": [[2, 1, 4]],
}
BINARY = ("Add", "Sub", "Mul", "Div", "Concat")
TYPES = [getattr(TensorProto, f"{kind}INT{bits}") for kind in ("", "U") for bits in (8, 16, 32, 64)]
TYPES += [TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE]


@pytest.mark.parametrize("operator", sorted(_OF_SHAPES))
def test_cuda_has_what_may_be_left_to_the_cpu_for_every_type(operator):
    """Else a node that is on the CPU for want of a kernel would pass for the arithmetic of a shape."""
    names = ["x1", "x2"][: 1 + (operator in BINARY)]
    axes = [numpy_helper.from_array(np.array(a), f"axes{i}") for i, a in enumerate(AXES.get(operator, []))]
    providers = []
    for element, opset in itertools.product(TYPES, (18, 21, 23, 24, 26)):
        options = {"Cast": {"to": element}, "Concat": {"axis": 0}}.get(operator, {})
        node = helper.make_node(operator, [*names, *(tensor.name for tensor in axes)], ["y"], **options)
        model = model_of([node], [(name, element, [1, 4]) for name in names], [("y", element, None)], opset)
        model.graph.initializer.extend(axes)
        try:
            providers += [node.provider for node in Session(model, ["cuda", "cpu"]).placement()]
        except SessionError:  # no provider has a kernel, or ONNX has no such operator
            continue
    assert set(providers) == {CUDA}
    assert len(providers) >= 5 * 4
