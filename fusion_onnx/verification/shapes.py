"""Whether a model's outputs have the shapes that the model declares."""

from collections.abc import Sequence

from fusion_onnx.runtime import TensorInfo

Shape = Sequence[int]


def false_shapes(
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
) -> list[str]:
    """Return a sentence for each declared axis of an output that one run shows to be false.

    An axis is false where it is declared as a number and has another size, and where it is declared by a name that
    has another size elsewhere in the run. An axis without a name declares nothing.

    Args:
        inputs, outputs: what the model declares.
        input_shapes, output_shapes: the shapes of the run's inputs and outputs, in the same order.

    Raises:
        ValueError: the numbers of tensors differ.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for info, shape in zip(inputs, input_shapes, strict=True):
        for axis, (name, size) in enumerate(zip(info.shape or (), shape, strict=False)):
            if isinstance(name, str):
                sizes.setdefault(name, (size, f"axis {axis} of {info.name}"))
    sentences = []
    for info, shape in zip(outputs, output_shapes, strict=True):
        if info.shape is None:
            continue
        if len(info.shape) != len(shape):
            sentences.append(f"{info} has {len(shape)} axes, {list(shape)}.")
            continue
        for axis, (declared, size) in enumerate(zip(info.shape, shape, strict=True)):
            here = f"axis {axis} of {info.name}"
            if isinstance(declared, int) and declared != size:
                sentences.append(f"{here} is declared as {declared} and has the size {size}.")
            elif isinstance(declared, str):
                other, where = sizes.setdefault(declared, (size, here))
                if other != size:
                    sentences.append(
                        f"{here} is declared as {declared!r}, which is {other} at {where}, and has {size}."
                    )
    return sentences
