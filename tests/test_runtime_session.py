"""Session: inputs by position and by name, checks before the run, memory read in place, threads."""

import gc
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusion_onnx.runtime import InputError, Session, SessionError, TensorInfo, _ort


def build(nodes, inputs, outputs, *, initializers=(), functions=(), metadata=None):
    """A model; inputs and outputs are {name: (element type, shape)}."""
    values = [[helper.make_tensor_value_info(n, *t) for n, t in infos.items()] for infos in (inputs, outputs)]
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in sorted({f.domain for f in functions}))]
    graph = helper.make_graph(nodes, "g", *values, list(initializers))
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    helper.set_model_props(model, metadata or {})
    return model


def fusion_model(elem=TensorProto.FLOAT, width=3):
    """y = x1 - 2 x2 in a function of our domain, so that swapped inputs show."""
    nodes = [
        helper.make_node("Add", ["x2", "x2"], ["d"], name="double"),
        helper.make_node("Sub", ["x1", "d"], ["y"], name="subtract"),
    ]
    opsets = [helper.make_opsetid("", 20)]
    body = helper.make_function("fusion_onnx", "difference_k2", ["x1", "x2"], ["y"], nodes, opsets)
    call = helper.make_node("difference_k2", ["x1", "x2"], ["y"], domain="fusion_onnx")
    shape = (elem, ["batch", width])
    return build([call], {"x1": shape, "x2": shape}, {"y": shape}, functions=[body], metadata={"fusion": "difference"})


@pytest.fixture(scope="module")
def session():
    return Session(fusion_model(), "cpu")


def one(op_type, elem_in, elem_out, shape_in=("n",), shape_out=("n",)):
    node = helper.make_node(op_type, ["x"], ["y"])
    return Session(build([node], {"x": (elem_in, shape_in)}, {"y": (elem_out, shape_out)}), "cpu")


X1 = np.arange(6, dtype=np.float32).reshape(2, 3)
X2 = np.full((2, 3), 10, np.float32)
Y = X1 - 2 * X2


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((X1, X2), {}),
        (((X1, X2),), {}),
        (([X1, X2],), {}),
        (({"x2": X2, "x1": X1},), {}),
        ((), {"x2": X2, "x1": X1}),
        ((X1,), {"x2": X2}),
        (([X1],), {"x2": X2}),
        (({"x2": X2},), {"x1": X1}),
        ((X1.tolist(), X2.astype(int).tolist()), {}),
    ],
)
def test_inputs_arrive_in_the_models_order(session, args, named):
    [y] = session.run(*args, **named)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, Y)


def test_what_a_session_says_of_itself(session):
    assert session.inputs == (
        TensorInfo("x1", "float32", ("batch", 3)),
        TensorInfo("x2", "float32", ("batch", 3)),
    )
    assert session.outputs == (TensorInfo("y", "float32", ("batch", 3)),)
    assert session.providers == ["CPUExecutionProvider"]
    assert session.metadata == {"fusion": "difference"}
    assert "x1: float32[batch, 3]" in repr(session)
    assert "CPUExecutionProvider" in repr(session)


def test_placement_names_the_fusion_of_each_node(session):
    nodes = [(p.op_type, p.domain, p.provider, p.fusion) for p in session.placement()]
    assert nodes == [(op, "", "CPUExecutionProvider", "difference_k2") for op in ("Add", "Sub")]


def test_metadata_is_a_copy(session):
    session.metadata["fusion"] = "changed"
    assert session.metadata == {"fusion": "difference"}


@pytest.mark.parametrize("empty", [np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32).T])
def test_a_batch_without_rows(session, empty):
    assert session.run(empty, empty)[0].shape == (0, 3)


LAYOUTS = {
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "fortran": np.asfortranarray,
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "big-endian": lambda a: a.astype(">f4"),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.float32, offset=1).reshape(a.shape),
    "readonly": lambda a: np.frombuffer(a.tobytes(), np.float32).reshape(a.shape),
    "subclass": lambda a: a.view(np.recarray),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_the_right_numbers(session, layout):
    x1, x2 = LAYOUTS[layout](X1), LAYOUTS[layout](X2)
    np.testing.assert_array_equal(session.run(x1, x2)[0], Y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_reaches_onnx_runtime_is_plain_memory(layout, monkeypatch):
    """It would copy strided arrays itself, 40 times slower, and read unaligned ones where the processor allows."""
    arrays = []
    spy = SimpleNamespace(run=lambda names, feeds, options: arrays.extend(feeds.values()) or [Y])
    fresh = Session(fusion_model(), "cpu")
    monkeypatch.setattr(fresh, "_ort_session", spy)
    fresh.run(LAYOUTS[layout](X1), LAYOUTS[layout](X2))
    assert [(a.dtype.str, a.flags.c_contiguous, a.flags.aligned) for a in arrays] == [("<f4", True, True)] * 2
    np.testing.assert_array_equal(arrays[0], X1)


def test_onnx_runtimes_own_fallback_is_off(session):
    assert session._ort_session._enable_fallback is False


def test_a_broadcast_view_gives_the_right_numbers(session):
    x2 = np.broadcast_to(np.float32(10), (2, 3))
    assert x2.strides == (0, 0)
    np.testing.assert_array_equal(session.run(X1, x2)[0], Y)


ERRORS = [
    ((), {}, "missing: x1, x2; got nothing"),
    ((X1,), {}, "missing: x2; got x1"),
    ((X1, X2, X2), {}, "got 3 inputs by position, the model takes 2: x1: float32"),
    (([X1, X2, X2],), {}, "wrap it"),
    ((X1, X2), {"x2": X2}, "x2: given twice, by position and by name"),
    (({"x1": X1},), {"x1": X1, "x2": X2}, "x1: given twice, in the mapping"),
    ((X1,), {"x_2": X2}, "'x_2' is no input; did you mean 'x2'"),
    ((X1, X2.astype(np.float64)), {}, r"x2: got float64, the model takes float32; .* x2\.astype\(np\.float32\)"),
    ((), {"x1": X1, "zz": X2}, "'zz' is no input"),
    ((X1, X2.astype(np.int32)), {}, "x2: got int32"),
    ((X1, [["a"] * 3] * 2), {}, "x2: got str"),
    ((X1, [[1.0], [2.0, 3.0]]), {}, "x2: list cannot be made"),
    ((X1, None), {}, "x2: got object"),
    ((X1, np.ma.masked_less(X2, 5)), {}, r"x2: ONNX knows no masks; .* x2\.filled"),
    ((X1, X2[0]), {}, r"x2: rank 1 \(shape \(3,\)\), the model takes x2: float32\[batch, 3\]"),
    ((X1, X2[:, :2]), {}, r"x2: axis 1 has 2 \(shape \(2, 2\)\)"),
    ((X1, X2[:1]), {}, "batch: x1 has 2, x2 has 1; they must agree"),
    ((X1, X2[:0]), {}, "batch: x1 has 2, x2 has 0"),
]


@pytest.mark.parametrize(("args", "named", "text"), ERRORS)
def test_errors_name_the_input(session, args, named, text):
    with pytest.raises(InputError, match=text):
        session.run(*args, **named)
    np.testing.assert_array_equal(session.run(X1, X2)[0], Y)  # and the session still works


def test_shapes_that_passed_once_do_not_let_others_through(session):
    session.run(X1, X2)
    with pytest.raises(InputError, match="batch"):
        session.run(X1, X2[:1])
    with pytest.raises(InputError, match="batch"):
        session.run(X1, X2[:1])


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((X1, X2.astype(np.float64)), "x2: got float64"),
        ((X1, X2.astype(">f8")), "x2: got float64"),
        ((X1, X2.astype(np.int32)), "x2: got int32"),
        ((X1, X2[:, :2]), "x2: axis 1 has 2"),
        ((X1, X2[0]), "x2: rank 1"),
        ((X1, None), "x2: "),
        ((X1,), "missing: x2"),
        ((X1, X2, X2), "got 3 inputs"),
    ],
)
def test_a_call_like_the_last_one_lets_nothing_else_through(session, args, text):
    for _ in range(2):
        np.testing.assert_array_equal(session.run(X1, X2)[0], Y)
        with pytest.raises(InputError, match=text):
            session.run(*args)


def test_a_call_like_the_last_one_reads_its_own_memory(session):
    session.run(X1, X2)
    for scale in (2, 3):
        np.testing.assert_array_equal(session.run(X1 * np.float32(scale), X2)[0], X1 * scale - 2 * X2)
    np.testing.assert_array_equal(session.run((X1 + 1).tolist(), X2)[0], Y + 1)
    np.testing.assert_array_equal(session.run(np.asfortranarray(X1 + 1), X2)[0], Y + 1)


def test_a_model_without_inputs():
    constant = helper.make_tensor("c", TensorProto.FLOAT, [3], [1, 2, 3])
    outputs = {"y": (TensorProto.FLOAT, [3])}
    bare = Session(build([helper.make_node("Neg", ["c"], ["y"])], {}, outputs, initializers=[constant]), "cpu")
    for _ in range(2):
        assert bare.run()[0].tolist() == [-1, -2, -3]


def entry(session, key="session.force_spinning_stop"):
    try:
        return session._ort_session.get_session_options().get_session_config_entry(key)
    except RuntimeError:  # ONNX Runtime's way to say that there is none
        return None


def test_threads_spin_unless_the_caller_says_otherwise():
    import onnxruntime

    assert entry(Session(fusion_model(), "cpu")) is None
    assert entry(Session(fusion_model(), "cpu", spin=False)) == "1"
    for spin, expected in ((True, None), (False, "1")):
        options = onnxruntime.SessionOptions()
        assert entry(Session(fusion_model(), "cpu", spin=spin, session_options=options)) == expected
    own = onnxruntime.SessionOptions()
    own.add_session_config_entry("session.force_spinning_stop", "1")
    assert entry(Session(fusion_model(), "cpu", session_options=own)) == "1"


def test_every_session_of_a_session_spins_or_not_as_it_does():
    session = Session(fusion_model(), "cpu", spin=False, static_shapes=1)
    session.run(X1, X2)
    session.run(X1, X2)
    (instance,) = session._instances._sessions.values()
    assert entry(SimpleNamespace(_ort_session=instance)) == "1"
    session = Session(fusion_model(), "cpu", spin=False)
    if session.fused:
        session._unfuse(session._plain)
    assert entry(session) == "1"


def test_the_threads_are_as_many_as_onnx_runtimes_own(session):
    options, own = session._ort_session.get_session_options(), __import__("onnxruntime").SessionOptions()
    for key in ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level"):
        assert getattr(options, key) == getattr(own, key)
    for key in ("session.intra_op_thread_affinities", "session.intra_op.allow_spinning"):
        assert entry(session, key) is None  # its own choice: a thread for each core, pinned, that spins


def test_without_the_inner_half_of_onnx_runtimes_session(monkeypatch):
    whole = Session(fusion_model(), "cpu")
    bare = SimpleNamespace(run=whole._ort_session.run, run_with_iobinding=whole._ort_session.run_with_iobinding)
    assert _ort.runner(bare)(["y"], {"x1": X1, "x2": X2}, None)[0].tolist() == Y.tolist()
    monkeypatch.setattr(_ort, "_inner", lambda session: None)
    np.testing.assert_array_equal(whole.run(X1, X2)[0], Y)
    np.testing.assert_array_equal(whole.bind(X1, X2)()[0], Y)


def test_many_shapes(session):
    for rows in range(600):
        x = np.ones((rows, 3), np.float32)
        assert session.run(x, x)[0].shape == (rows, 3)
    assert len(session._good_shapes) <= 256


@pytest.mark.parametrize(
    ("elem", "value", "fits"),
    [
        (TensorProto.INT64, [1, -2], True),
        (TensorProto.UINT8, [1, 2], True),
        (TensorProto.UINT8, [1, -2], False),
        (TensorProto.INT8, [300], False),
        (TensorProto.INT64, [1.5], False),
        (TensorProto.BOOL, [True], True),
        (TensorProto.BOOL, [1], False),
        (TensorProto.FLOAT, [1, 2.5], True),
        (TensorProto.FLOAT, [], True),
        (TensorProto.FLOAT, [np.float64(1)], False),
        (TensorProto.FLOAT, [np.float32(1)], True),
        (TensorProto.STRING, ["a", "b"], True),
        (TensorProto.STRING, [1], False),
    ],
)
def test_python_values_take_the_models_dtype_only_where_it_holds_them(elem, value, fits):
    session = one("Identity", elem, elem)
    if fits:
        assert session.run([value])[0].tolist() == value
    else:
        with pytest.raises(InputError, match=r"^x: "):
            session.run([value])


def test_scalars_and_tensors_of_unknown_rank():
    scalar = one("Neg", TensorProto.FLOAT, TensorProto.FLOAT, (), ())
    assert scalar.inputs[0].shape == ()
    assert scalar.run(2.0)[0] == -2
    with pytest.raises(InputError, match="rank 1"):
        scalar.run(np.ones(1, np.float32))
    any_rank = one("Neg", TensorProto.FLOAT, TensorProto.FLOAT, None, None)
    assert any_rank.inputs[0].shape is None
    assert any_rank.run(np.ones((1, 2, 3), np.float32))[0].shape == (1, 2, 3)


def test_an_error_inside_the_run_is_a_session_error():
    infos = {"a": (TensorProto.FLOAT, ["n"]), "b": (TensorProto.FLOAT, ["m"])}
    add = helper.make_node("Add", ["a", "b"], ["y"])
    session = Session(build([add], infos, {"y": (TensorProto.FLOAT, None)}), "cpu")
    with pytest.raises(SessionError, match="failed in run"):
        session.run(np.ones(2, np.float32), np.ones(3, np.float32))


def test_a_large_input_is_not_copied():
    """A Shape node reads no data, so its time is that of the copy, if there is one: 64 MiB take milliseconds."""
    session = one("Shape", TensorProto.FLOAT, TensorProto.INT64, ("n", "m"), (2,))
    big = np.zeros((4096, 4096), np.float32)
    torch = pytest.importorskip("torch")
    assert session._slots[0][2].read(big) is big
    tensor = torch.from_numpy(big)
    assert session._slots[0][2].read(tensor).ctypes.data == tensor.data_ptr()
    for value in (big, tensor):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            session.run(value)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        big.copy()
        assert min(times) < (time.perf_counter() - start) / 4


def test_outputs_outlive_the_session_and_do_not_touch_the_model():
    constant = helper.make_tensor("c", TensorProto.FLOAT, [3], [1, 2, 3])
    nodes = [helper.make_node("Identity", ["c"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    shape = (TensorProto.FLOAT, ["n"])
    model = build(nodes, {"x": shape}, {"y": (TensorProto.FLOAT, [3]), "z": shape}, initializers=[constant])
    session = Session(model, "cpu")
    x = np.arange(3, dtype=np.float32)
    y, z = session.run(x)
    y[:], z[:] = 9, 9
    assert x.tolist() == [0, 1, 2]
    y, z = session.run(x)
    del session
    gc.collect()
    for _ in range(20):  # memory that was freed would be written again by now
        Session(model, "cpu").run(np.full(3, 7, np.float32))
    assert (y.tolist(), z.tolist()) == ([1, 2, 3], [0, 1, 2])


def test_eight_threads_share_one_session(session):
    wrong = []

    def work(seed):
        for i in range(200):
            x1 = np.full((1 + (seed + i) % 5, 3), seed, np.float32)
            x2 = np.full(x1.shape, i, np.float32)
            [y] = session.run(x1, x2)
            if y.shape != x1.shape or not (y == seed - 2 * i).all():
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_running_a_model_brings_neither_torch_nor_onnx(tmp_path):
    onnx.save(fusion_model(), tmp_path / "m.onnx")
    code = f"""
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
import fusion_onnx.runtime
heavy = {{"torch", "onnx", "onnxruntime"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import numpy as np
x = np.ones((1, 3), np.float32)
print(fusion_onnx.runtime.Session({str(tmp_path / "m.onnx")!r}, "cpu").run(x, x)[0].tolist())
assert heavy & set(sys.modules) == {{"onnxruntime"}}, heavy & set(sys.modules)
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[-1.0, -1.0, -1.0]]"


def test_numbers_for_a_string_input_are_the_readers_to_refuse():
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    string = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "strings", string[:1], string[1:])
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = Session(model, "cpu")
    for dtype in (np.float32, np.float64, np.int64):
        with pytest.raises(InputError, match="x: got"):
            session.run(np.ones(3, dtype))
    assert session.run(np.array(["a", "b"]))[0].tolist() == ["a", "b"]


def big_sum(provider="cpu", **options):
    shape = (TensorProto.FLOAT, ["rows", 512])
    node = helper.make_node("Add", ["x1", "x2"], ["y"])
    return Session(build([node], {"x1": shape, "x2": shape}, {"y": shape}), provider, threads=1, **options)


@pytest.mark.parametrize("way", ["run", "run on tensors", "bind", "bind tensors", "instances"])
def test_results_outlive_their_session_and_what_runs_next(way):
    torch = pytest.importorskip("torch")
    session, another = big_sum(static_shapes=1 if way == "instances" else 0), big_sum()
    xs = [np.full((512, 512), value, np.float32) for value in (1, 2)]
    if "tensors" in way:
        xs = [torch.from_numpy(x) for x in xs]
    [y] = session.bind(*xs)() if "bind" in way else session.run(*xs)
    others = [np.full((512, 512), 9, np.float32)] * 2
    for _ in range(3):
        session.run(*others)
    session.run(*[x[:7] for x in others])
    del session, xs
    gc.collect()
    results = [another.run(*others)[0] for _ in range(3)] + [np.full((512, 512), 7, np.float32) for _ in range(3)]
    assert (np.asarray(y) == 3).all()
    y[...] = 0  # nobody else reads it
    assert all((other != 0).all() for other in results)


def test_results_of_one_array_are_apart():
    """ONNX Runtime gives one value two names; whoever writes into one result has not written into the other."""
    for outputs in (("y", "z"), ("x", "y")):
        infos = {name: (TensorProto.FLOAT, ["n", 512]) for name in "xyz"}
        nodes = [helper.make_node("Identity", ["x"], [name]) for name in outputs if name != "x"]
        session = Session(build(nodes, {"x": infos["x"]}, {name: infos[name] for name in outputs}), "cpu")
        x = np.ones((64, 512), np.float32)
        for first, second in (session.run(x), session.bind(x)()):
            first[...] = 5
            assert (x == 1).all()
            assert (second == 1).all()


RESIDENT = """
import numpy as np, torch
from fusion_onnx import Session, create, export
model = export(create("sum", dims=[64, 64]), ([torch.ones(2, 64), torch.ones(2, 64)],), verify=False)
session = Session(model, "cpu")
def call(rows):
    x = np.ones((rows, 64), np.float32)
    session.run(x, x)
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
first = call(4)
call(400_000)
call(4)
print(call(4) - first, bool(session.fused))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells what is resident")
def test_one_large_call_does_not_keep_its_outputs_memory():
    """The output of 400,000 rows takes 98 MiB."""
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    more, fused = done.stdout.split()
    assert float(more) < 60, f"{more} MiB; kernels: {fused}"
