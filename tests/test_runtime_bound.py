"""`Session.bind`: repeated calls on the same memory give what `run` gives, and bad memory is refused."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import fusion_onnx
from benchmarks import sanitizer
from fusion_onnx import InputError, Session, SessionError, create, export
from fusion_onnx.runtime import _bound
from fusion_onnx.runtime._openvino import OPENVINO
from fusion_onnx.runtime._probe import CPU, CUDA, probe
from tests import mischief

_ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.bool: TensorProto.BOOL,
    torch.int64: TensorProto.INT64,
    torch.float16: TensorProto.FLOAT16,
}


def made(name="low_rank_concatenation", dims=(4, 6), dtype=torch.float32, provider="cpu", **options):
    fusion = create(name, dims=list(dims), **options)
    xs = [torch.randn(3, d).to(dtype) for d in dims]
    length = fusion.calculate_l()
    args = (xs, torch.randn(length).to(dtype)) if length else (xs,)
    return Session(export(fusion, args, verify=False).model, provider), [*xs, *args[1:]]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in fusion_onnx.names()),
        *(("mean", dtype) for dtype in (torch.float16, torch.float64)),
    ],
)
def test_every_strategy_gives_what_run_gives(name, dtype):
    options = {"n": 4} if "n" in fusion_onnx.get(name).options() else {}
    session, tensors = made(name, (4, 4), dtype, **options)
    arrays = [t.numpy() for t in tensors]
    call = session.bind(*arrays)
    for _ in range(3):
        for array in arrays:
            array[...] = np.random.default_rng(0).standard_normal(array.shape)
        (y,) = call()
        assert np.array_equal(y, session.run(*arrays)[0])
        assert y is call.outputs[0]


def test_inputs_and_outputs_are_the_callers_own():
    y = np.full((3, 4), np.nan, np.float32)
    session, arrays = made(n=4)[0], [t.numpy() for t in made(n=4)[1]]
    call = session.bind(*arrays, outputs=y)
    assert np.isnan(y).all()  # nothing is written before the first call
    assert call()[0] is y
    assert all(a is b for a, b in zip(call.inputs, arrays, strict=True))
    before = y.copy()
    arrays[0] += 1
    call()
    assert not np.array_equal(y, before)
    assert np.array_equal(y, session.run(*arrays)[0])


def test_by_name_and_as_tensors():
    session, tensors = made(n=4)
    named = dict(zip([info.name for info in session.inputs], tensors, strict=True))
    y = torch.empty(3, 4)
    call = session.bind(**named, outputs={session.outputs[0].name: y})
    assert call()[0] is y
    tensors[0].mul_(2)
    call()
    assert torch.equal(y, session.run(*tensors)[0])
    (free,) = session.bind(*tensors)()
    assert isinstance(free, torch.Tensor)
    assert torch.equal(free, y)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_other_batch_sizes(rows):
    session, _ = made("sum", (4, 4))
    xs = [np.ones((rows, 4), np.float32)] * 2
    assert session.bind(*xs)()[0].shape == (rows, 4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:, ::-1],
        lambda x: x.T.copy().T,
        lambda x: x.tolist(),
        lambda x: x.astype(">f4"),
        lambda x: torch.from_numpy(np.repeat(x, 2, 1))[:, ::2],
    ],
    ids=["reversed", "Fortran order", "a list", "big-endian", "a strided tensor"],
)
def test_what_would_be_copied_is_refused(spoil):
    session, _ = made("sum", (4, 4))
    x = np.ones((3, 4), np.float32)
    with pytest.raises(InputError, match=r"x1: a bound call reads the caller's own memory.*contiguous"):
        session.bind(spoil(x), x)


X = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (np.ones((3, 5), np.float32), r"float32\[3, 4\]; got a numpy array float32\[3, 5\]"),
        (np.ones((3, 4)), "got a numpy array float64"),
        (torch.ones(3, 4), "got a torch tensor"),
        ([], "gives 1 outputs"),
        ({"z": X}, "outputs are y; got z"),
        ([[1, 2]], "got a list"),
        (np.ones((4, 3), np.float32).T, "contiguous and writable"),
        (np.frombuffer(bytes(48), np.float32).reshape(3, 4), "contiguous and writable"),
        (X, "y shares memory"),
    ],
)
def test_outputs_that_do_not_fit(outputs, said):
    session, _ = made("sum", (4, 4))
    with pytest.raises(InputError, match=said):
        session.bind(X, X, outputs=outputs)


def test_wrong_inputs_are_refused_as_run_refuses_them():
    session, _ = made("sum", (4, 4))
    for args in ((X,), (X, X.astype(np.float64)), (X, np.ones((2, 4), np.float32)), (X, np.ones((3, 5), np.float32))):
        with pytest.raises(InputError):
            session.bind(*args)


def test_only_tensors_of_numbers_are_bound():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x", "x"], ["parts"])], "pair", [x], [parts])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(InputError, match=r"parts.*only tensors of numbers"):
        Session(model, "cpu").bind(np.ones(3, np.float32))


def test_the_inputs_live_as_long_as_the_call():
    session, _ = made("sum", (4, 4))
    call = session.bind(np.full((300, 4), 2, np.float32), np.full((300, 4), 3, np.float32))
    _ = [np.full((300, 4), 9, np.float32) for _ in range(50)]  # would take freed memory
    assert (call()[0] == 5).all()


def test_no_act_on_what_is_bound_leads_to_memory_that_is_free():
    """A process of its own does them all: they are named, with what is right, in mischief.py."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is gone, so that who reads it dies
    child = [sys.executable, "-m", "tests.mischief"]
    done = subprocess.run(child, capture_output=True, text=True, check=False, timeout=300, env=env)
    assert not done.returncode, f"{done.stdout[-600:]} {done.stderr[-600:]}"


def test_other_memory_is_refused_until_it_is_bound_again():
    session, _ = made("sum", (4, 4))
    x = torch.ones(3, 4)
    call = session.bind(x, torch.ones(3, 4))
    first = x.data
    x.data = torch.full((3, 4), 5.0)
    with pytest.raises(InputError, match=r"x1: .* other memory since it was bound .* bind again"):
        call()
    assert (session.bind(x, torch.ones(3, 4))()[0] == 6).all()
    x.data = first  # its own again
    assert (call()[0] == 2).all()


def test_what_a_call_returns_cannot_be_changed():
    session, _ = made("sum", (4, 4))
    call = session.bind(X, X)
    assert call() is call.outputs
    assert isinstance(call.outputs, tuple)
    assert isinstance(call.inputs, tuple)
    for name in ("inputs", "outputs"):
        with pytest.raises(AttributeError):
            setattr(call, name, ())


def test_a_call_that_ends_lets_go_of_its_memory():
    session, _ = made("sum", (4, 4))
    buffer = mmap.mmap(-1, 48)
    x = np.ndarray((3, 4), np.float32, buffer=buffer)
    y = np.ones((3, 4), np.float32)
    call = session.bind(x, y)
    call()
    gone = weakref.ref(y)
    del call, x, y
    assert gone() is None
    buffer.close()


BOTH = np.zeros((6, 4), np.float32)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda: [BOTH[:3]] * 2,
        lambda: [BOTH[:3], BOTH[:3]],
        lambda: [BOTH[:3], BOTH[2:5]],
        lambda: [BOTH[2:5], BOTH[:3]],
        lambda: [torch.from_numpy(BOTH)[:3], torch.from_numpy(BOTH)[2:5]],
        lambda: {"y": BOTH[:3], "z": BOTH[1:4]},
        lambda: [np.ndarray((3, 4), np.float32, buffer=BOTH.data, offset=o) for o in (0, 4)],
    ],
    ids=[
        "one twice",
        "two views",
        "overlap",
        "overlap, later first",
        "tensors of one storage",
        "by name",
        "one buffer",
    ],
)
def test_outputs_that_share_memory_are_refused(outputs):
    session = Session(mischief.model("Add", "Mul"), "cpu")
    outputs = outputs()
    tensors = isinstance(outputs, list) and isinstance(outputs[0], torch.Tensor)
    x = torch.ones(3, 4) if tensors else X
    with pytest.raises(InputError, match="shares memory with an input or another output"):
        session.bind(x, x, outputs=outputs)


def test_neighbours_in_one_array_are_two_outputs():
    session = Session(mischief.model("Add", "Mul"), "cpu")
    two = np.full((3, 4), 2, np.float32)
    y, z = session.bind(two, two * 3, outputs=[BOTH[:3], BOTH[3:]])()
    assert (y == 8).all()
    assert (z == 12).all()
    empty = [x[:0] for x in (two, two, BOTH, BOTH)]
    assert len(session.bind(*empty[:2], outputs=empty[2:])()) == 2  # what is empty shares nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64, torch.float16])
@pytest.mark.parametrize("rows", [0, 3])
def test_tensors_of_any_dtype_and_none_at_all(dtype, rows):
    info = [helper.make_tensor_value_info(name, _ELEMENTS[dtype], ["a", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x, y = torch.zeros(rows, 4, dtype=dtype), torch.zeros(rows, 4, dtype=dtype)
    for call in (Session(model, "cpu").bind(x), Session(model, "cpu").bind(x, outputs=y)):
        x[...] = 1
        assert torch.equal(call()[0], x)
        x[...] = 0
        assert torch.equal(call()[0], x)


def test_threads_take_turns():
    session, _ = made("sum", (64, 64))
    xs = [np.ones((256, 64), np.float32)] * 2
    call = session.bind(*xs)
    wrong = []

    def work():
        wrong.extend(i for i in range(200) if not (call()[0] == 2).all())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failure_is_a_session_error():
    session, _ = made("sum", (4, 4))
    call = session.bind(X, X.copy())
    call._runs = [lambda: (_ for _ in ()).throw(RuntimeError("no such thing"))]
    with pytest.raises(SessionError, match="no such thing"):
        call()


@pytest.mark.gpu
def test_on_the_gpu_nothing_leaves_it(cuda):
    session, tensors = made(n=4, provider="cuda")
    tensors = [t.to(cuda) for t in tensors]
    y = torch.empty(3, 4, device=cuda)
    call = session.bind(*tensors, outputs=y)
    for _ in range(3):
        tensors[0].mul_(2)
        assert call()[0] is y
        assert torch.equal(y, session.run(*tensors)[0])


class Device:
    """A session with memory of its own, on the CPU: what is bound as an input is copied at the next synchronisation."""

    def __init__(self, session):
        self._session, self.run, self.copies = session, session.run, 0

    def io_binding(self):
        self._binding, self._queue = self._session.io_binding(), []
        return self

    def run_with_iobinding(self, binding, options):
        assert not self._queue, "the copies of the inputs were not waited for"
        self._session.run_with_iobinding(self._binding, options)

    def bind_input(self, name, device, number, dtype, shape, address):
        source = (ctypes.c_char * int(np.prod(shape) * np.dtype(dtype).itemsize)).from_address(address)
        self._queue.append((name, np.frombuffer(source, dtype).reshape(shape)))

    def bind_output(self, *args):
        self._binding.bind_output(*args)

    def synchronize_inputs(self):
        self.copies += len(self._queue)
        while self._queue:
            name, source = self._queue.pop()
            self._binding.bind_cpu_input(name, source.copy())

    def synchronize_outputs(self):
        self._binding.synchronize_outputs()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_new_values_reach_openvino_at_each_call(kind):
    """Its provider has a device of its own to ONNX Runtime, though it computes on the CPU."""
    if not probe(OPENVINO).starts:
        pytest.skip("OpenVINO does not start here")
    session, _ = made("sum", (4, 4), provider="openvino")
    x, y = kind(np.ones((3, 4), np.float32)), kind(np.ones((3, 4), np.float32))
    call = session.bind(x, y)
    for value in (5, 6):
        x[...] = value
        assert (call()[0] == value + 1).all()


@pytest.mark.parametrize("provider", [CUDA, OPENVINO])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_new_values_on_the_host_reach_a_device_at_each_call(kind, provider):
    """ONNX Runtime copies an input of the host to a device when it is bound, and never again."""
    session, _ = made("sum", (4, 4))
    device = Device(session._ort_session)
    x, y = kind(np.ones((3, 4), np.float32)), kind(np.ones((3, 4), np.float32))
    session._ort_session, session.providers = device, [provider, CPU]
    call = session.bind(x, y, outputs=(out := kind(np.zeros((3, 4), np.float32))))
    for value in (5, 6, 7):
        x[...] = value
        assert (call()[0] == value + 1).all()
        assert call()[0] is out
    assert device.copies == 2 * 6


@pytest.mark.slow
@pytest.mark.skipif(not sanitizer.library(), reason="gcc has no libasan here")
def test_the_sanitizers_find_nothing_in_a_sample():
    table = sanitizer.check(seed=0, sample=3)
    assert table["findings"] == []
    assert table["wrong"] == []
    assert min(table[what] for what in ("kernels", "runs", "bound", "large", "mischief")) > 0


# --- blocks of rows ---------------------------------------------------------------------------------------------------

ENTRYWISE = [name for name in fusion_onnx.names() if fusion_onnx.get(name).entrywise]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_bound, "BLOCK", 100)
    monkeypatch.setattr(_bound, "LARGE", 1400)


@pytest.mark.parametrize(
    ("name", "lead", "dtype"),
    [
        *((name, (37,), torch.float32) for name in ENTRYWISE),
        *(("median", (37,), dtype) for dtype in (torch.float16, torch.float64)),
        *(("learned_weighted_sum", lead, torch.float32) for lead in ((1,), (2,), (5, 3), (64, 2, 2))),
    ],
    ids=str,
)
def test_blocks_give_the_same_bits(name, lead, dtype, small_blocks, monkeypatch):
    fusion = create(name, dims=[7] * 3)
    xs = [torch.randn(*lead, 7).to(dtype) for _ in range(3)]
    xs[1].flatten()[:2] = torch.tensor([torch.nan, torch.inf])
    length = fusion.calculate_l()
    args = (xs, torch.randn(length).to(dtype)) if length else (xs,)
    session = Session(export(fusion, args, verify=False).model, "cpu", fuse=False)
    tensors = [*xs, *args[1:]]
    call = session.bind(*tensors)
    blocked = call()[0].clone(), session.run(*tensors)[0], session.run(*[t.numpy() for t in tensors])[0]
    assert (len(call._runs) > 1) == (lead[0] > 1 and sum(x.nbytes for x in xs) + xs[0].nbytes > 1400)
    monkeypatch.setattr(_bound, "LARGE", 1 << 40)
    whole = session.run(*tensors)[0]
    for y in blocked:
        assert torch.equal(torch.as_tensor(y).nan_to_num(7), whole.nan_to_num(7))
    assert isinstance(blocked[1], torch.Tensor)
    assert isinstance(blocked[2], np.ndarray)


def test_what_is_not_entrywise_stays_whole(small_blocks):
    tanh = create("sum", dims=[4, 4], preprocess_functions="tanh")
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    xs = [torch.randn(50, 4), torch.randn(50, 4)]
    for module, args in ((tanh, (xs,)), (network, (xs[0],))):
        model = export(module, args, verify=False).model
        session = Session(model, "cpu", fuse=False)
        assert not session._rows
        assert "fusion_onnx.entrywise" not in session.metadata
    session, tensors = made(n=4)
    assert not session._rows
    assert len(session.bind(*tensors)._runs) == 1


def test_a_layer_and_an_inlined_file_are_entrywise_too(small_blocks):
    layer = fusion_onnx.FusionLayer(create("learned_weighted_sum", dims=[4, 4]))
    args = (torch.randn(50, 4), torch.randn(50, 4))
    for inline in ("none", "all"):
        session = Session(export(layer, args, inline=inline, verify=False).model, "cpu", fuse=False)
        call = session.bind(*args)
        assert len(call._runs) > 1
        with torch.no_grad():
            assert torch.equal(call()[0], layer(*args))
