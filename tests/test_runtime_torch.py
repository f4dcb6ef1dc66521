"""Session with torch tensors and other arrays that speak DLPack."""

import gc

import numpy as np
import pytest
from onnx import TensorProto, helper

from fusion_onnx.runtime import InputError, Session, TensorInfo
from fusion_onnx.runtime import _torch as room
from fusion_onnx.runtime._inputs import Reader
from fusion_onnx.runtime._probe import CUDA

torch = pytest.importorskip("torch")

NUMERIC = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


def identity(elem, shape=("n", 3)):
    infos = [[helper.make_tensor_value_info(name, elem, shape)] for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", *infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def session():
    return Session(identity(TensorProto.FLOAT), "cpu")


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("dtype", NUMERIC)
def test_torch_in_torch_out(dtype, rows):
    x = torch.arange(rows * 3).reshape(rows, 3).to(getattr(torch, dtype))
    [y] = Session(identity(NUMERIC[dtype]), "cpu").run(x)
    gc.collect()  # the session is gone
    assert isinstance(y, torch.Tensor)
    assert y.dtype is x.dtype
    assert torch.equal(x, y)
    y.zero_()  # its memory is its own to write


X = torch.arange(6, dtype=torch.float32).reshape(2, 3)
LAYOUTS = {
    "gradient": lambda: X.clone().requires_grad_(),
    "parameter": lambda: torch.nn.Parameter(X.clone()),
    "inside a graph": lambda: X.clone().requires_grad_() * 1,
    "transposed": lambda: X.T.contiguous().T,
    "strided": lambda: X.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda: X[:1].expand(2, 3),
    "offset": lambda: torch.cat([X, X])[2:],
    "negated view": lambda: torch._neg_view(-X),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_right_numbers(session, layout):
    x = LAYOUTS[layout]()
    [y] = session.run(x)
    assert torch.equal(x.detach(), y)
    assert not y.requires_grad


def test_the_negated_view_is_one():
    view = LAYOUTS["negated view"]()
    assert view.is_neg()
    assert view.is_contiguous()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (X.double(), r"x: got float64, the model takes float32; convert it: x\.to\(torch\.float32\)"),
        (X.to_sparse(), "x: .*make it dense"),
        (X.to("meta"), "x: .*meta device"),
        (X[0], "rank 1"),
    ],
)
def test_errors_name_the_input(session, value, text):
    with pytest.raises(InputError, match=text):
        session.run(value)


def test_other_dlpack_objects_are_read_in_place():
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    class OnGpu(Foreign):
        def __dlpack_device__(self):
            return (2, 0)

    reader = Reader(TensorInfo("x", "float32", ("n",)))
    array = np.arange(3, dtype=np.float32)
    assert reader.read(Foreign(array)).ctypes.data == array.ctypes.data
    with pytest.raises(InputError, match="x: this OnGpu is not in host memory"):
        reader.read(OnGpu(array))
    with pytest.raises(InputError, match="x: got float64"):
        reader.read(Foreign(array.astype(float)))


def run_bound_on_cpu(elem, tensor):
    """The path that CUDA takes, on the CPU: what it does with DLPack does not depend on the device."""
    import onnxruntime

    ort_session = onnxruntime.InferenceSession(identity(elem).SerializeToString(), providers=["CPUExecutionProvider"])
    return room.run_bound(onnxruntime, ort_session, {"x": tensor}, ["y"])[0]


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("dtype", [*NUMERIC, "bfloat16"])
def test_the_bound_path_carries_every_dtype(dtype, rows):
    x = torch.arange(rows * 3).reshape(rows, 3).to(getattr(torch, dtype))
    y = run_bound_on_cpu(NUMERIC.get(dtype, TensorProto.BFLOAT16), x)
    gc.collect()
    for _ in range(10):
        run_bound_on_cpu(TensorProto.FLOAT, torch.full((rows, 3), 7.0))
    assert y.dtype is x.dtype
    assert torch.equal(x, y)


def test_the_bound_path_reads_in_place():
    import onnxruntime

    for x in (X, X.bool(), X.bfloat16()):
        assert room.ort_value(onnxruntime, "x", x).data_ptr() == x.data_ptr()


def test_the_bound_path_refuses_strides():
    with pytest.raises(InputError, match="x: ONNX Runtime cannot read this tensor on cpu"):
        run_bound_on_cpu(TensorProto.FLOAT, X.T.contiguous().T)


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("dtype", [*NUMERIC, "bfloat16"])
def test_cuda_in_cuda_out(cuda, dtype, rows):
    x = torch.arange(rows * 3).reshape(rows, 3).to(getattr(torch, dtype)).to(cuda)
    session = Session(identity(NUMERIC.get(dtype, TensorProto.BFLOAT16)), ["cuda", "cpu"])
    [y] = session.run(x)
    del session
    gc.collect()
    assert y.device == x.device
    assert y.dtype is x.dtype
    assert torch.equal(x, y)


@gpu
def test_a_cuda_tensor_into_a_cpu_session_is_an_error(cuda, session):
    with pytest.raises(InputError, match="x is on cuda:0, the session runs on cpu"):
        session.run(X.to(cuda))


@gpu
def test_numpy_into_a_cuda_session(cuda):
    session = Session(identity(TensorProto.FLOAT), "cuda")
    assert session.providers[0] == CUDA
    np.testing.assert_array_equal(session.run(X.numpy())[0], X.numpy())
