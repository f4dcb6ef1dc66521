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
from fusion_onnx.fusions._projection import ProjectionFusion
from fusion_onnx.runtime import OPENVINO_EXACT
from fusion_onnx.runtime._ort import set_threads
from fusion_onnx.runtime._probe import first_line

Call = Callable[[], Any]
CONTENDERS: dict[str, Callable[[Fusion, list[Tensor], Tensor | None], Call]] = {}


class Absent(RuntimeError):
    """The contender has nothing for this strategy."""


def contender(build: Callable[[Fusion, list[Tensor], Tensor | None], Call]) -> Any:
    """Enter a contender by its function's name."""
    CONTENDERS[build.__name__] = build
    return build


class Formula(nn.Module):
    """The formula as it is usually written, which is the strategy's own `reference`, traced from NumPy into operators.

    Of a projection, the product with the whole matrix, a constant as the weights of a trained network are.

    Raises:
        Absent: the strategy gives no reference.
    """

    def __init__(self, fusion: Fusion, w: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        if not fusion.has_reference():
            raise Absent(f"{fusion.strategy()} gives no reference")
        self.matrix: Tensor | None
        self.w: Tensor | None
        matrix = None
        if isinstance(fusion, ProjectionFusion):
            assert w is not None
            dense = fusion.matrix(w.detach().double().reshape(-1).numpy(), *fusion.buffer_arrays())
            matrix = torch.from_numpy(dense).to(dtype).T.contiguous()
        self.register_buffer("matrix", matrix)
        self.register_buffer("w", None if w is None or matrix is not None else w.detach().reshape(-1))
        self.fusion = copy.deepcopy(fusion).to(dtype)
        # a network has its constants in the inputs' dtype, where a reference has them in float64
        self.fusion.__dict__["buffer_arrays"] = lambda: [b.numpy() for b in self.fusion.buffers()]

    def forward(self, *x: Any) -> Tensor:
        """Compute it from k tensors (..., n_i), given as one list or one by one."""
        xs = x[0] if len(x) == 1 and isinstance(x[0], (list, tuple)) else x
        if self.matrix is not None:
            return torch.cat(list(xs), -1) @ self.matrix
        w = None if self.w is None else self.w.numpy()
        return torch.as_tensor(self.fusion.reference([x.detach().numpy() for x in xs], w))


def session(model: bytes, threads: int | None = None) -> Any:
    """Return a bare ONNX Runtime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    set_threads(options, threads or torch.get_num_threads())
    options.log_severity_level = 3
    # else its threads spin on the cores that the next contender needs; its own speed is the same
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bind(raw: Any, arrays: list[Any], like: Any) -> Call:
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


def export_bytes(fusion: Fusion, xs: list[Tensor], w: Tensor | None, **options: Any) -> bytes:
    """Return our file; the parameters are constants in it, as those of a trained network are."""
    layer = fusion_onnx.FusionLayer(fusion, w)
    return bytes(fusion_onnx.export(layer, tuple(xs), verify=False, **options).model.SerializeToString())


def plain_export_bytes(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> bytes:
    """Return the formula's file, as torch.onnx.export writes it; raises Absent where there is none, with the reason."""
    return plain_model(Formula(fusion, w, xs[0].dtype).eval(), tuple(xs))


def plain_model(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """Return the file of a module with formulas in it, as torch.onnx.export writes it, the batch dynamic.

    Raises:
        Absent: a formula cannot be traced; the message has the reason.
    """
    batch = torch.export.Dim("batch")
    dynamic = all(x.shape[0] > 1 for x in example)
    # a formula takes its inputs as *x, which torch.export names once for all of them
    axes = tuple({0: batch} for _ in example)
    shapes = ((axes,) if isinstance(module, Formula) else axes) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported_program = torch.export.export(
                module, example, dynamic_shapes=shapes, strict=True
            )  # NumPy wants strict
        except Exception as error:  # whatever tracing raises for NumPy that it does not know
            raise Absent(f"its reference cannot be traced: {first_line(error)}") from error
        for node in exported_program.graph.nodes:
            if node.target is torch.ops.aten.sort.stable:  # what np.sort becomes; torch.onnx knows the other one alone
                node.target = torch.ops.aten.sort.default
                node.args, node.kwargs = (node.args[0], node.kwargs["dim"]), {}
        program = torch.onnx.export(exported_program, dynamo=True, verbose=False)
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
    fusions = classes()
    name = fusion.strategy()
    metric_name = {"metric": f"{getattr(fusion, 'metric', '')}_fusion"}.get(name)
    cls = next((fusions[n] for n in ([metric_name] if metric_name else type(fusion).tinybig) if n in fusions), None)
    if cls is None:
        raise Absent("tinyBIG has no such fusion")
    if any(getattr(fusion, option) != value for option, value in type(fusion).tinybig_defaults.items()):
        raise Absent("it computes another matrix under this name, that of the row beside")
    options = {option: getattr(fusion, option) for option in ("n", "p", "q", "r", "weights") if hasattr(fusion, option)}
    module = cls(dims=list(fusion.dims or ()), **options)
    parameter = w if w is None or "n" not in fusion.options() else w.reshape(1, -1)
    buffers = dict(fusion.named_buffers())
    if {"a", "b"} <= buffers.keys():  # its random matrices are drawn at the first call; ours are put in their place
        module.parameter_fabrication.A, module.parameter_fabrication.B = buffers["a"], buffers["b"]

    def call() -> Any:
        with torch.no_grad():
            return module(xs, parameter)

    return call


@contender
def compiled(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call torch.compile of the best eager formula, static shapes."""
    torch.compiler.reset()
    buffers: list[Tensor] = [b.to(xs[0].dtype) for b in fusion.buffers()]
    function = torch.compile(lambda *tensors: fusion.fuse(list(tensors), w, *buffers), fullgraph=True, dynamic=False)

    def call() -> Tensor:
        with torch.no_grad():
            return function(*xs)

    return call


@contender
def plain_export(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run the plain export of the formula in ONNX Runtime."""
    like = eager(fusion, xs, w)().numpy()
    return bind(session(plain_export_bytes(fusion, xs, w)), [x.numpy() for x in xs], like)


@contender
def ours(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours by a bound call on the CPU provider, with fused kernels where they are."""
    runner = fusion_onnx.Session(export_bytes(fusion, xs, w), "cpu", threads=torch.get_num_threads(), spin=False)
    call = runner.bind(*[x.numpy() for x in xs])
    return lambda: call()[0]


@contender
def ours_raw(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run the same file by ONNX Runtime's own run_with_iobinding: its own operators, no fused kernels."""
    like = eager(fusion, xs, w)().numpy()
    return bind(session(export_bytes(fusion, xs, w)), [x.numpy() for x in xs], like)


@contender
def ours_openvino(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours by a bound call on ONNX Runtime's OpenVINO provider, with static shapes."""
    model = export_bytes(fusion, xs, w, dynamic=None, providers="openvino")
    call = fusion_onnx.Session(model, "openvino").bind(*[x.numpy() for x in xs])
    return lambda: call()[0]


@contender
def ours_cuda(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours by a bound call on the CUDA provider, on tensors that lie there."""
    status = fusion_onnx.runtime.diagnose()
    if not any(s.alias == "cuda" and s.starts for s in status):
        raise Absent(next((s.reason for s in status if s.alias == "cuda"), "this onnxruntime has no CUDA"))
    model = export_bytes(fusion, xs, w, providers="cuda")
    call = fusion_onnx.Session(model, "cuda").bind(*[x.cuda() for x in xs])
    return _wait_for_gpu(lambda: call()[0])


@contender
def eager_cuda(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call our eager execution on tensors on the GPU."""
    return _wait_for_gpu(eager(*_on_gpu(fusion, xs, w)))


@contender
def compiled_cuda(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call torch.compile of the best eager formula on tensors on the GPU."""
    return _wait_for_gpu(compiled(*_on_gpu(fusion, xs, w)))


def _on_gpu(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> tuple[Fusion, list[Tensor], Tensor | None]:
    if not torch.cuda.is_available():
        raise Absent("PyTorch has no GPU here")
    return copy.deepcopy(fusion).cuda(), [x.cuda() for x in xs], None if w is None else w.cuda()


def _wait_for_gpu(call: Call) -> Call:
    """Return a call that waits for the GPU."""

    def call_and_wait() -> Any:
        y = call()
        torch.cuda.synchronize()
        return y

    return call_and_wait


@contender
def openvino(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours in OpenVINO itself, inlined, with static shapes, in float32."""
    import openvino as ov

    model = export_bytes(fusion, xs, w, dynamic=None, inline="all", providers="openvino")
    core = ov.Core()
    network = core.read_model(io.BytesIO(model))
    options = {**OPENVINO_EXACT, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(network, "CPU", options).create_infer_request()
    for i, t in enumerate(xs):
        request.set_input_tensor(i, ov.Tensor(t.numpy(), shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return call
