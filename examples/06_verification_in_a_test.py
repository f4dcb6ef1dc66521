"""Verification in a test: pytest's fixture `assert_parity`, which comes with fusion-onnx, and what a failure says.

The first test exports the network, and passes. The second compares a file with a network that learned more after the
export. It fails, and the failure names the weights that differ: here that is what is to be seen.

Install: pip install "fusion-onnx[all]" pytest
"""

import subprocess
import sys
from pathlib import Path

import torch

import fusion_onnx

INPUTS = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))


def network():
    """Return two views, weighted."""
    return fusion_onnx.FusionLayer(fusion_onnx.create("learned_weighted_sum", dims=[2, 2]), init=[0.5, 0.5])


def test_the_network(assert_parity):
    assert_parity(network(), INPUTS)


def test_the_file_of_last_week(assert_parity):
    trained = network()
    model = fusion_onnx.export(trained, INPUTS)
    with torch.no_grad():
        trained.w += 0.25
    assert_parity(trained, INPUTS, model=model, battery=False)


if __name__ == "__main__":  # the same as `pytest -qq --tb=short 06_verification_in_a_test.py`, and leaves no cache
    command = [sys.executable, "-B", "-m", "pytest", "-qq", "--tb=short", "-p", "no:cacheprovider"]
    subprocess.run([*command, Path(__file__).name], cwd=Path(__file__).parent)
