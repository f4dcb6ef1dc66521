"""Write the documented differences' smallest files again: python -m tests.differences."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from fusion_onnx.verification import known

FOLDER = Path(__file__).parent.parent / "docs" / "differences"
SELECTIONS = ["max", "median", "metric", "min"]
PROJECTIONS = ["*_concatenation", "random_matrix_adaptation"]

ENTRIES = {
    "openvino-nan-in-minimum-and-maximum": {
        "runtime": "openvino",
        "kind": "differs",
        "title": "OpenVINO loses a NaN in the first input of Max and Min",
        "why": "Its kernel takes the second operand where either is NaN, as the x86 instruction does. A NaN in x1 is "
        "lost, and with it the NaN of max, min and median. Put the input that may hold NaN last, or check before.",
        "strategies": SELECTIONS,
        "values": ["NaN in *"],
    },
    "openvino-float64-is-float32": {
        "runtime": "openvino",
        "kind": "differs",
        "title": "OpenVINO computes float64 in float32",
        "why": "Its CPU plug-in has no float64 kernels: it converts the whole graph to float32, saturates what does "
        "not fit (Inf becomes 3.4e38), and converts the result back. Export in float32 for it.",
        "dtypes": ["float64"],
    },
    "onnxruntime-openvino-nan-in-minimum-and-maximum": {
        "runtime": "onnxruntime_openvino",
        "kind": "differs",
        "title": "OpenVINO as ONNX Runtime's provider loses a NaN in the first input of Max and Min",
        "why": "Its kernel is OpenVINO's own, which takes the second operand where either is NaN.",
        "strategies": SELECTIONS,
        "values": ["NaN in *"],
    },
    "onnxruntime-openvino-float64-is-float32": {
        "runtime": "onnxruntime_openvino",
        "kind": "differs",
        "title": "OpenVINO as ONNX Runtime's provider computes float64 in float32",
        "why": "It hands the graph to OpenVINO, whose CPU plug-in has no float64 kernels. Export in float32 for it.",
        "dtypes": ["float64"],
    },
    "onnxruntime-tanh-of-subnormals": {
        "runtime": "onnxruntime_cpu",
        "kind": "differs",
        "title": "ONNX Runtime's CPU provider is off in Tanh of subnormal numbers",
        "why": "Its approximation is off by 0.2 % at 1e-41 and by 1e-5 at 1e-38, and gives 0 at the smallest. No "
        "strategy has Tanh in it; a network or a preprocess function that applies Tanh to inputs "
        "that small differs there, on the battery's values tiny and subnormal.",
        "strategies": [],
        "dtypes": ["float32"],
        "values": ["tiny", "subnormal"],
        "operators": ["Tanh"],
    },
    "onnxruntime-sigmoid-of-large-negatives": {
        "runtime": "onnxruntime_cpu",
        "kind": "differs",
        "title": "ONNX Runtime's CPU provider gives 0 for Sigmoid below -18",
        "why": "Its approximation is off by 3e-8 at most, which is all of the result there. Only what multiplies a "
        "gate by values of 1e7 and more sees it. No strategy has Sigmoid in it.",
        "strategies": [],
        "dtypes": ["float32"],
        "values": ["large, 1e4", "huge", "overflow"],
        "operators": ["Sigmoid"],
    },
    "tract-nan-in-minimum-and-maximum": {
        "runtime": "tract",
        "kind": "differs",
        "title": "tract loses NaN in Max and Min",
        "why": "Its Max and Min return the other operand where one is NaN, as Rust's f32::max does. A NaN is lost in "
        "max, min and median. Check for NaN before.",
        "strategies": SELECTIONS,
        "values": ["NaN in *"],
    },
    "tract-subnormal-products": {
        "runtime": "tract",
        "kind": "differs",
        "title": "tract takes subnormal numbers for zero in float32 matrix products",
        "why": "Terms below 1.2e-38 are lost from sums of products. Scale data that small.",
        "strategies": PROJECTIONS,
        "dtypes": ["float32"],
        "values": ["tiny", "subnormal"],
    },
}

# what every verdict knows is defined in the package, and documented here
ENTRIES |= {
    d.id: {
        key: [*value] if isinstance(value, tuple) else value
        for key, value in asdict(d).items()
        if key != "id" and (value or key == "strategies")
    }
    for d in known.OPERATORS
    if d.runtime != "torch_eager"
}


def _model(
    op: str, dtype: int, shapes: list[list[int]], outputs: tuple[str, ...] = ("y",), **attributes: object
) -> onnx.ModelProto:
    names = [f"x{i + 1}" for i in range(len(shapes))]
    inputs = [helper.make_tensor_value_info(n, dtype, s) for n, s in zip(names, shapes, strict=True)]
    output = helper.make_tensor_value_info("y", dtype, None)
    node = helper.make_node(op, names, [*outputs], name=op.lower(), **attributes)
    graph = helper.make_graph([node], "difference", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _selection() -> onnx.ModelProto:
    model = _model("TopK", TensorProto.FLOAT, [[3], [1]], ("y", "i"))
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    return model


def _recurrent() -> onnx.ModelProto:
    """A GRU of one unit over one step, all weights and biases 1: without biases its kernel keeps NaN."""
    model = _model("GRU", TensorProto.FLOAT, [[1, 1, 1]], ("", "y"), hidden_size=1)
    model.graph.node[0].input.extend(["w", "r", "b"])
    for name, shape in (("w", (1, 3, 1)), ("r", (1, 3, 1)), ("b", (1, 6))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return model


def smallest() -> dict[str, tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]]:
    """The smallest file, its inputs, and what IEEE arithmetic gives, for each entry."""
    nan, one = np.array([np.nan], np.float32), np.array([1], np.float32)
    third = np.array([1 / 3]), np.array([1e-12])
    small, two = np.array([[1e-39]], np.float32), np.array([[2]], np.float32)
    subnormal = np.full(8, 1e-41, np.float32)
    negative = np.full(8, -30, np.float32)
    pair = _model("Min", TensorProto.FLOAT, [[1], [1]])
    return {
        "openvino-nan-in-minimum-and-maximum": (pair, [nan, one], nan),
        "openvino-float64-is-float32": (_model("Add", TensorProto.DOUBLE, [[1], [1]]), [*third], third[0] + third[1]),
        "onnxruntime-openvino-nan-in-minimum-and-maximum": (pair, [nan, one], nan),
        "onnxruntime-openvino-float64-is-float32": (
            _model("Add", TensorProto.DOUBLE, [[1], [1]]),
            [*third],
            third[0] + third[1],
        ),
        "onnxruntime-tanh-of-subnormals": (_model("Tanh", TensorProto.FLOAT, [[8]]), [subnormal], subnormal),
        "onnxruntime-sigmoid-of-large-negatives": (
            _model("Sigmoid", TensorProto.FLOAT, [[8]]),
            [negative],
            (1 / (1 + np.exp(-negative))).astype(np.float32),
        ),
        "onnxruntime-nan-in-maxima-and-minima": (
            _model("ReduceMax", TensorProto.FLOAT, [[3]], keepdims=1),
            [np.array([1, np.nan, 2], np.float32)],
            nan,
        ),
        "onnxruntime-minus-infinity-in-max-pool": (
            _model("MaxPool", TensorProto.FLOAT, [[1, 1, 1]], kernel_shape=[1]),
            [np.full((1, 1, 1), -np.inf, np.float32)],
            np.full((1, 1, 1), -np.inf, np.float32),
        ),
        "onnxruntime-nan-in-selections": (
            _selection(),
            [np.array([1, np.nan, 2], np.float32), np.array([1], np.int64)],
            nan,
        ),
        "onnxruntime-nan-in-unique": (
            _model("Unique", TensorProto.FLOAT, [[3]]),
            [np.array([np.nan, 1, 2], np.float32)],
            np.array([1, 2, np.nan], np.float32),
        ),
        "onnxruntime-nan-in-recurrent-networks": (
            _recurrent(),
            [np.full((1, 1, 1), np.nan, np.float32)],
            nan.reshape(1, 1, 1),
        ),
        "tract-nan-in-minimum-and-maximum": (pair, [nan, one], nan),
        "tract-subnormal-products": (_model("MatMul", TensorProto.FLOAT, [[1, 1], [1, 1]]), [small, two], small * two),
    }


EAGER = """\
## Eager PyTorch's own

Not the model is wrong here, but what it is held to.

- `torch.nn.functional.gelu` gives NaN for +Inf on a CPU, in float32, from four entries on; ONNX Runtime gives Inf, as
  float64 does; an entry in which the model agrees with float64 and eager does not is no failure.
- `torch.sign` gives 0 for NaN; Sign in ONNX gives NaN.

## Rules of ONNX, and other tools

- A negative index is an error in `torch.nn.Embedding`, and counts from the end in ONNX's Gather: a file gives a number
  for the padding id −1 where the module raises. Check ids before the call.
- `onnx.version_converter` drops functions, and with them the bodies of the fusions: the converted file loads nowhere.
  Export at the opset that is wanted, `opset=`, or with `inline="all"`.
- `onnxruntime.quantization.quantize_dynamic` leaves what lies in functions in float. With
  `onnxruntime.quantization.shape_inference.quant_pre_process` before it, which writes the bodies out and folds their
  weights, the products in them are quantized too.
""".splitlines()


def spelled(pattern: str) -> str:
    """What stands for all of a kind in a file would open italics on a page."""
    return "all" if pattern == "*" else f"`{pattern}`" if "*" in pattern else pattern


def page(found: list[known.Difference]) -> str:
    """The page that lists them."""
    lines = [
        "# Known differences",
        "",
        "Where a runtime parts from eager execution, as `fusion-onnx matrix` and `fusion-onnx verify` find it; with",
        "`--known docs/differences` they say so, and do not fail for it. What ONNX Runtime's own operators do with NaN",
        "every verdict knows. Each entry has the smallest file that shows it; a test runs that file, so that an entry",
        "that no longer holds is found out.",
        "",
    ]
    for d in found:
        folder = f"differences/{d.id}"
        lines += [
            f"## {d.title}",
            "",
            d.why,
            "",
            f"- strategies: {', '.join(f'`{s}`' for s in d.strategies) or 'none by itself'}; "
            f"dtypes: {', '.join(map(spelled, d.dtypes))}; values: {', '.join(map(spelled, d.values))}"
            + (f"; operators: {', '.join(f'`{o}`' for o in d.operators)}" if d.operators else ""),
            f"- [model.onnx]({folder}/model.onnx), [inputs.npz]({folder}/inputs.npz) with the right result as `y`",
            "",
        ]
    return "\n".join([*lines, *EAGER])


def main() -> None:
    files = smallest()
    for name, entry in ENTRIES.items():
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "difference.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        model, inputs, y = files[name]
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        np.savez(folder / "inputs.npz", **{f"x{i + 1}": x for i, x in enumerate(inputs)}, y=y)
    (FOLDER.parent / "differences.md").write_text(page(known.load(FOLDER)), encoding="utf-8")


if __name__ == "__main__":
    main()
