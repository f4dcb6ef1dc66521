"""Write the small models kept in this folder, each with inputs and eager outputs: `make models`."""

from pathlib import Path

import numpy as np

import fusion_onnx
from models import breast_cancer, digits

HERE = Path(__file__).parent
SAMPLES = 16


def main() -> None:
    """Train, export and store one network for each data set."""
    for source in (digits, breast_cancer):
        name = source.__name__.rpartition(".")[2]
        network = source.train()
        result = fusion_onnx.export(network, source.example_inputs(), HERE / f"{name}.onnx", overwrite=True)
        views = [tensor.numpy() for tensor in source.example_inputs(SAMPLES)]
        names = [value.name for value in result.model.graph.input]
        arrays = dict(zip(names, views, strict=True))
        np.savez_compressed(HERE / f"{name}.npz", y=source.predict(network, views), **arrays)
        print(f"{name}: {result!r}")


if __name__ == "__main__":
    main()
