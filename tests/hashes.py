"""A hash of each strategy's exported bytes, at every case and in every form: `python -m tests.hashes > before.txt`.

Where a change is not meant to alter what is exported, the lines before and after it are the same.
"""

import hashlib
from collections.abc import Iterator

import torch

import fusion_onnx
from tests.test_export import drawn


def hashes(names: list[str]) -> Iterator[str]:
    """Yield a line for each strategy, case and form that has something to offer there."""
    for name in names:
        strategy = fusion_onnx.get(name)
        for number, case in enumerate(strategy.cases):
            torch.manual_seed(0)  # some strategies draw buffers
            fusion = case.create(strategy)
            for form in fusion.forms():
                try:
                    model = fusion_onnx.export(fusion, drawn(fusion, 3), form=form, verify=False).model
                except fusion_onnx.ExportError as error:
                    if "offers" not in str(error):
                        raise
                    continue
                data = model.SerializeToString(deterministic=True)
                yield f"{name} {number} {form} {hashlib.sha256(data).hexdigest()}"


if __name__ == "__main__":
    print(*hashes(fusion_onnx.names()), sep="\n")
