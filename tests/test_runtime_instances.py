"""Instances with static shapes: for sizes seen twice, few, and by many threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fusion_onnx
from fusion_onnx.runtime import InputError, Session, SessionError
from fusion_onnx.runtime._instances import Graphs, Instances, sizes_of
from fusion_onnx.runtime._types import TensorInfo


class Factory:
    """Counts what it makes; a session is its sizes."""

    def __init__(self, error=None):
        self.sizes = []
        self.error = error

    def __call__(self, sizes):
        self.sizes.append(sizes)
        if self.error:
            raise self.error
        return sizes


def of(instances, n, **options):
    return instances.of((("batch", n),), **options)


def test_an_instance_is_made_the_second_time():
    factory = Factory()
    instances = Instances("any", factory, 2)
    assert of(instances, 5) == "any"
    assert of(instances, 5) == {"batch": 5}
    assert of(instances, 5) == {"batch": 5}
    assert factory.sizes == [{"batch": 5}]
    assert of(instances, 7, at_once=True) == {"batch": 7}


def test_the_least_recently_used_is_dropped():
    factory = Factory()
    instances = Instances("any", factory, 2)
    for n in (1, 2):
        of(instances, n, at_once=True)
    of(instances, 1)
    of(instances, 3, at_once=True)
    assert instances.sizes == [{"batch": 1}, {"batch": 3}]
    assert of(instances, 2) == {"batch": 2}  # seen before, so it is made again
    assert instances.sizes == [{"batch": 3}, {"batch": 2}]


def test_what_is_remembered_of_sizes_is_bounded():
    instances = Instances("any", Factory(), 2)
    for n in range(1000):
        assert of(instances, n + 1) == "any"
    assert len(instances._counts) <= 256
    assert instances.sizes == []


def test_sizes_that_cannot_be_planned_are_left_to_the_dynamic_session():
    factory = Factory(SessionError("no"))
    instances = Instances("any", factory, 2)
    for _ in range(4):
        assert of(instances, 5, at_once=True) == "any"
    assert len(factory.sizes) == 1


def test_while_one_thread_makes_an_instance_the_others_do_not_wait():
    inside, go = threading.Event(), threading.Event()

    def make(sizes):
        inside.set()
        assert go.wait(30)
        return sizes

    instances = Instances("any", make, 2)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(of, instances, 5, at_once=True)
        assert inside.wait(30)
        assert of(instances, 5, at_once=True) == "any"
        go.set()
        assert slow.result() == {"batch": 5}
    assert of(instances, 5) == {"batch": 5}


def test_sizes_are_those_of_the_named_axes():
    infos = [TensorInfo("x", "float32", ("batch", 3)), TensorInfo("y", "float32", ("batch", "width"))]
    assert sizes_of(infos, [(2, 3), (2, 4)]) == (("batch", 2), ("width", 4))
    assert sizes_of(infos, [(0, 3), (0, 4)]) == ()  # nothing to plan for
    assert sizes_of([TensorInfo("x", "float32", None)], [(2,)]) == ()


@pytest.fixture(scope="module")
def linear():
    fusion = fusion_onnx.create("linear_concatenation", dims=[3, 4], n=5)
    xs = [torch.randn(2, 3), torch.randn(2, 4)]
    return fusion_onnx.export(fusion, (xs, torch.randn(fusion.calculate_l())), verify=False)


def inputs(session, rows, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=[rows, *i.shape[1:]] if i.shape[0] == "batch" else i.shape).astype("f4")
            for i in session.inputs]  # fmt: skip


def test_a_session_with_instances_gives_the_same_numbers(linear):
    with_them, without = Session(linear, "cpu", static_shapes=2), Session(linear, "cpu")
    assert without._instances is None
    for rows in (1, 2, 0, 5, 2, 5, 2, 1, 0, 1):
        xs = inputs(without, rows, rows)
        assert np.array_equal(with_them.run(xs)[0], without.run(xs)[0])
    assert with_them._instances.sizes == [{"batch": 2}, {"batch": 1}]
    instance = with_them._instances.of((("batch", 2),))
    assert instance.get_inputs()[0].shape[0] == 2
    assert with_them.inputs[0].shape[0] == "batch"


def test_a_bound_call_has_an_instance_at_once(linear):
    session = Session(linear, "cpu", static_shapes=1)
    xs = inputs(session, 6)
    call = session.bind(*xs)
    assert session._instances.sizes == [{"batch": 6}]
    xs[0][:] = 3
    assert np.array_equal(call()[0], Session(linear, "cpu").run(xs)[0])
    session.bind(*inputs(session, 7))
    assert session._instances.sizes == [{"batch": 7}]
    assert np.array_equal(call()[0], Session(linear, "cpu").run(xs)[0])  # it keeps the one that it was bound to


def test_many_threads(linear):
    session, right = Session(linear, "cpu", static_shapes=2), Session(linear, "cpu")
    cases = [inputs(right, 1 + n % 5, n) for n in range(200)]
    expected = [right.run(xs)[0] for xs in cases]
    with ThreadPoolExecutor(8) as pool:
        for y, right_y in zip(pool.map(lambda xs: session.run(xs)[0], cases), expected, strict=True):
            assert np.array_equal(y, right_y)
    assert len(session._instances.sizes) <= 2


def test_wrong_shapes_are_refused_before_an_instance_is_made(linear):
    session = Session(linear, "cpu", static_shapes=2)
    xs = inputs(session, 3)
    for _ in range(3):
        with pytest.raises(InputError):
            session.run([xs[0], xs[1][:2], *xs[2:]])
    assert session._instances.sizes == []


def test_arguments_that_cannot_be(linear):
    with pytest.raises(ValueError, match="static_shapes is -1"):
        Session(linear, "cpu", static_shapes=-1)
    import onnxruntime

    with pytest.raises(ValueError, match="leave out session_options"):
        Session(linear, "cpu", static_shapes=2, session_options=onnxruntime.SessionOptions())
    session = Session(linear, "cpu")
    with pytest.raises(SessionError, match="a CUDA graph needs providers='cuda'"):
        session.bind(*inputs(session, 2), cuda_graph=True)


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_same_numbers(linear, cuda):
    session = Session(linear, "cuda")
    xs = [torch.from_numpy(x).to(cuda) for x in inputs(session, 6)]
    call = session.bind(*xs, cuda_graph=True)
    for seed in range(3):
        for x, new in zip(xs, inputs(session, 6, seed), strict=True):
            x.copy_(torch.from_numpy(new))
        torch.testing.assert_close(call()[0], session.run(*xs)[0])
    with pytest.raises(InputError, match="on the GPU"):
        session.bind(*inputs(session, 6), cuda_graph=True)


def test_graphs_of_one_set_of_sizes_share_a_session_and_take_turns():
    factory = Factory()
    graphs = Graphs(factory, 2)
    first, second, other = (graphs.of((("batch", n),)) for n in (5, 5, 6))
    assert first[0] is second[0]
    assert first[1].lock is second[1].lock
    assert first[1].lock is not other[1].lock
    assert len({first[2], second[2], other[2]}) == 3  # one graph each
    graphs.of((("batch", 7),))
    graphs.of((("batch", 5),))
    assert [sizes["batch"] for sizes in factory.sizes] == [5, 6, 7, 5]
