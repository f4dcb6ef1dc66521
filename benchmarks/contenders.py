"""What a user would run for a fusion: each contender takes a fusion and its arguments, and returns a call without any.

A contender that cannot run raises; the row keeps the reason.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fusion_onnx
from fusion_onnx import Fusion

Call = Callable[[], Any]
CONTENDERS: dict[str, Callable[[Fusion, list[Tensor], Tensor | None], Call]] = {}


class Absent(RuntimeError):
    """The contender has nothing for this strategy."""


def contender(build: Callable[[Fusion, list[Tensor], Tensor | None], Call]) -> Any:
    """Enter a contender by its function's name."""
    CONTENDERS[build.__name__] = build
    return build


def tensors(xs: list[Tensor], w: Tensor | None) -> list[Tensor]:
    """Return a model's inputs in order."""
    return xs if w is None else [*xs, w]


class Stacked(nn.Module):
    """The formula as it is usually written: stack the inputs, reduce the new axis; or multiply by the dense matrix."""

    def __init__(self, fusion: Fusion, w: Tensor | None) -> None:
        super().__init__()
        name = fusion.metric if fusion.strategy() == "metric" else fusion.strategy()
        self.reduce = {
            "sum": lambda t: t.sum(0),
            "mean": lambda t: t.mean(0),
            "max": lambda t: t.amax(0),
            "min": lambda t: t.amin(0),
            "prod": lambda t: t.prod(0),
            "median": lambda t: t.sort(0).values[(t.shape[0] - 1) // 2],  # torch.median has no ONNX lowering
            "l1_norm": lambda t: torch.linalg.vector_norm(t, 1, 0),
            "l2_norm": lambda t: torch.linalg.vector_norm(t, 2, 0),
        }.get(str(name))
        held = fusion.weights if getattr(fusion, "weights", None) is not None else w
        if str(name).endswith("weighted_sum"):
            a = torch.ones(len(fusion.dims)) if held is None else held.detach().reshape(-1)
            self.register_buffer("a", a.reshape(-1, 1, 1))
            self.reduce = lambda t: (self.a * t).sum(0)
        if name != "concatenation" and self.reduce is None:  # what the identity gives are the columns of W
            with torch.no_grad():
                rows = torch.eye(sum(fusion.dims), dtype=held.dtype if held is not None else torch.float32)
                self.register_buffer("matrix", fusion(list(rows.split(list(fusion.dims), -1)), w).contiguous())

    def forward(self, *xs: Tensor) -> Tensor:
        """Compute it."""
        if self.reduce is not None:
            return self.reduce(torch.stack(xs))
        joined = torch.cat(xs, -1)
        return joined @ self.matrix if hasattr(self, "matrix") else joined


def session(model: bytes, threads: int | None = None) -> Any:
    """Return a bare ONNX Runtime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound(raw: Any, arrays: list[np.ndarray], like: np.ndarray) -> Call:
    """Return a call of a bare session on the arrays, into memory of its own."""
    binding = raw.io_binding()
    for info, x in zip(raw.get_inputs(), arrays, strict=True):
        binding.bind_input(info.name, "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    y = np.empty_like(like)
    binding.bind_output(raw.get_outputs()[0].name, "cpu", 0, y.dtype.type, y.shape, y.ctypes.data)

    def call() -> np.ndarray:
        raw.run_with_iobinding(binding)
        return y

    return call


def exported(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> bytes:
    """Return our file."""
    args = (xs,) if w is None else (xs, w)
    return fusion_onnx.export(fusion, args, verify=False).model.SerializeToString()


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
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


@contender
def eager(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call our eager execution."""

    def call() -> Tensor:
        with torch.no_grad():
            return fusion(xs, w)

    return call


@contender
def compiled(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Call torch.compile of the best eager formula, static shapes."""
    torch.compiler.reset()
    function = torch.compile(lambda *given: fusion.fuse(list(given), w, *buffers), fullgraph=True, dynamic=False)
    buffers = [b.to(xs[0].dtype) for b in fusion.buffers()]

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
    """Run ours by a bound call on the CPU provider."""
    made = fusion_onnx.Session(exported(fusion, xs, w), "cpu", threads=torch.get_num_threads())
    call = made.bind(*[t.numpy() for t in tensors(xs, w)])
    return lambda: call()[0]


@contender
def ours_raw(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run the same file by ONNX Runtime's own run_with_iobinding."""
    like = eager(fusion, xs, w)().numpy()
    return bound(session(exported(fusion, xs, w)), [t.numpy() for t in tensors(xs, w)], like)


@contender
def openvino(fusion: Fusion, xs: list[Tensor], w: Tensor | None) -> Call:
    """Run ours in OpenVINO itself, inlined, with static shapes, in float32."""
    import openvino as ov
    from onnx.inliner import inline_local_functions

    args = (xs,) if w is None else (xs, w)
    model = fusion_onnx.export(fusion, args, verify=False, dynamic=False).model
    core = ov.Core()
    read = core.read_model(io.BytesIO(inline_local_functions(model).SerializeToString()))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(read, "CPU", options).create_infer_request()
    for i, t in enumerate(tensors(xs, w)):
        request.set_input_tensor(i, ov.Tensor(t.numpy(), shared_memory=True))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor(0).data

    return call
