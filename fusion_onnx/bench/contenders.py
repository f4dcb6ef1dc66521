"""What a user would run for a fusion: each contender takes a fusion and its arguments, and returns a call without any.

A contender that cannot run raises; the row keeps the reason.
"""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fusion_onnx
from fusion_onnx import Fusion
from fusion_onnx.bench._tinybig import classes
from fusion_onnx.runtime._ort import set_threads

Call = Callable[[], Any]
CONTENDERS: dict[str, Callable[[Fusion, list[Tensor], Tensor | None], Call]] = {}


class Absent(RuntimeError):
    """The contender has nothing for this strategy."""


def contender(build: Callable[[Fusion, list[Tensor], Tensor | None], Call]) -> Any:
    """Enter a contender by its function's name."""
    CONTENDERS[build.__name__] = build
    return build


class Stacked(nn.Module):
    """The formula as it is usually written: stack the inputs, reduce the new axis; or multiply by the dense matrix."""

    def __init__(self, fusion: Fusion, w: Tensor | None) -> None:
        super().__init__()
        name = fusion.metric if fusion.strategy() == "metric" else fusion.strategy()
        reductions: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda t: t.sum(0),
            "mean": lambda t: t.mean(0),
            "max": lambda t: t.amax(0),
            "min": lambda t: t.amin(0),
            "prod": lambda t: t.prod(0),
            "median": lambda t: t.sort(0).values[(t.shape[0] - 1) // 2],  # torch.median has no ONNX lowering
            "l1_norm": lambda t: torch.linalg.vector_norm(t, 1, 0),
            "l2_norm": lambda t: torch.linalg.vector_norm(t, 2, 0),
        }
        self.reduce = reductions.get(str(name))
        dims = list(fusion.dims or ())
        held: Any = fusion.weights if getattr(fusion, "weights", None) is not None else w
        self.matrix: Tensor | None = None
        if str(name).endswith("weighted_sum"):
            a = torch.ones(len(dims)) if held is None else held.detach().reshape(-1)
            weights = a.reshape(-1, 1, 1)
            self.reduce = lambda t: (weights * t).sum(0)
        if name != "concatenation" and self.reduce is None:  # what the identity gives are the columns of W
            with torch.no_grad():
                rows = torch.eye(sum(dims), dtype=torch.float32 if held is None else held.dtype)
                matrix = fusion(list(rows.split(dims, -1)), w).contiguous()
            del self.matrix
            self.register_buffer("matrix", matrix)

    def forward(self, *xs: Tensor) -> Tensor:
        """Compute it."""
        if self.reduce is not None:
            return self.reduce(torch.stack(xs))
        joined = torch.cat(xs, -1)
        return joined if self.matrix is None else joined @ self.matrix


def session(model: bytes, threads: int | None = None) -> Any:
    """Return a bare ONNX Runtime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    set_threads(options, threads or torch.get_num_threads())
    options.log_severity_level = 3
    # else its threads spin on the cores that the next contender needs; its own speed is the same
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound(raw: Any, arrays: list[Any], like: Any) -> Call:
    """Return a call of a bare session on the arrays, into memory of its own."""
    binding = raw.io_binding()
    for info, x in zip(raw.get_inputs(), arrays, strict=True):
        binding.bind_input(info.name, "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    y = np.empty_like(like)
    binding.bind_output(raw.get_outputs()[0].name, "cpu", 0, y.dtype.type, y.shape, y.ctypes.data)

    def call() -> Any:
        raw.run_with_iobinding(binding)
        return y

    return call


def exported(fusion: Fusion, xs: list[Tensor], w: Tensor | None, **options: Any) -> bytes:
    """Return our file; the parameters are constants in it, as those of a trained network are."""
    layer = fusion_onnx.FusionLayer(fusion, w)
    return bytes(fusion_onnx.export(layer, tuple(xs), verify=False, **options).model.SerializeToString())


def plainly_exported(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> bytes:
    """Return the stacked form's file, as torch.onnx.export writes it."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Stacked(fusion, w).eval(),
            tuple(xs),
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in xs),) if xs[0].shape[0] > 1 else None,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


@contender
def eager(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call our eager execution."""

    def call() -> Any:
        with torch.no_grad():
            return fusion(xs, w)

    return call


@contender
def tinybig(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call tinyBIG's own fusion, eagerly; weights as it lays them out, which is as we do."""
    known = classes()
    name = fusion.strategy()
    named = {"metric": f"{getattr(fusion, 'metric', '')}_fusion"}.get(name)
    made = next((known[n] for n in ([named] if named else type(fusion).tinybig) if n in known), None)
    if made is None:
        raise Absent("tinyBIG has no such fusion")
    if any(getattr(fusion, option) != value for option, value in type(fusion).tinybig_defaults.items()):
        raise Absent("it computes another matrix under this name, that of the row beside")
    options = {option: getattr(fusion, option) for option in ("n", "p", "q", "r", "weights") if hasattr(fusion, option)}
    theirs = made(dims=list(fusion.dims or ()), **options)
    parameter = w if w is None or fusion.rule_n != "n" else w.reshape(1, -1)
    drawn = dict(fusion.named_buffers())
    if {"a", "b"} <= drawn.keys():  # its random matrices are drawn at the first call; ours are put in their place
        theirs.parameter_fabrication.A, theirs.parameter_fabrication.B = drawn["a"], drawn["b"]

    def call() -> Any:
        with torch.no_grad():
            return theirs(xs, parameter)

    return call


@contender
def compiled(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call torch.compile of the best eager formula, static shapes."""
    torch.compiler.reset()
    buffers: list[Tensor] = [b.to(xs[0].dtype) for b in fusion.buffers()]
    function = torch.compile(lambda *given: fusion.fuse(list(given), w, *buffers), fullgraph=True, dynamic=False)

    def call() -> Tensor:
        with torch.no_grad():
            return function(*xs)

    return call


@contender
def plain_export(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run the plain export of the stacked form in ONNX Runtime."""
    like = eager(fusion, xs, w)().numpy()
    return bound(session(plainly_exported(fusion, xs, w)), [x.numpy() for x in xs], like)


@contender
def ours(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours by a bound call on the CPU provider, with fused kernels where they are."""
    made = fusion_onnx.Session(exported(fusion, xs, w), "cpu", threads=torch.get_num_threads())
    call = made.bind(*[x.numpy() for x in xs])
    return lambda: call()[0]


@contender
def ours_raw(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run the same file by ONNX Runtime's own run_with_iobinding: its own operators, no fused kernels."""
    like = eager(fusion, xs, w)().numpy()
    return bound(session(exported(fusion, xs, w)), [x.numpy() for x in xs], like)


@contender
def ours_openvino(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours by a bound call on ONNX Runtime's OpenVINO provider, with static shapes."""
    made = exported(fusion, xs, w, dynamic=None, providers="openvino")
    call = fusion_onnx.Session(made, "openvino").bind(*[x.numpy() for x in xs])
    return lambda: call()[0]


@contender
def ours_cuda(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours by a bound call on the CUDA provider, on tensors that lie there."""
    status = fusion_onnx.runtime.diagnose()
    if not any(s.alias == "cuda" and s.starts for s in status):
        raise Absent(next((s.reason for s in status if s.alias == "cuda"), "this onnxruntime has no CUDA"))
    made = exported(fusion, xs, w, providers="cuda")
    call = fusion_onnx.Session(made, "cuda").bind(*[x.cuda() for x in xs])
    return _finished(lambda: call()[0])


@contender
def eager_cuda(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call our eager execution on tensors on the GPU."""
    return _finished(eager(*_on_gpu(fusion, xs, w)))


@contender
def compiled_cuda(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call torch.compile of the best eager formula on tensors on the GPU."""
    return _finished(compiled(*_on_gpu(fusion, xs, w)))


def _on_gpu(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> tuple[Fusion, list[Tensor], Tensor | None]:
    if not torch.cuda.is_available():
        raise Absent("PyTorch has no GPU here")
    return copy.deepcopy(fusion).cuda(), [x.cuda() for x in xs], None if w is None else w.cuda()


def _finished(call: Call) -> Call:
    """Return a call that waits for the GPU."""

    def finished() -> Any:
        y = call()
        torch.cuda.synchronize()
        return y

    return finished


@contender
def openvino(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours in OpenVINO itself, inlined, with static shapes, in float32."""
    import openvino as ov

    model = exported(fusion, xs, w, dynamic=None, inline="all", providers="openvino")
    core = ov.Core()
    read = core.read_model(io.BytesIO(model))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(read, "CPU", options).create_infer_request()
    for i, t in enumerate(xs):
        request.set_input_tensor(i, ov.Tensor(t.numpy(), shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return call
