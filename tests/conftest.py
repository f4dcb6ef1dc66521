"""GPU tests are skipped, with the reason, where the CUDA provider does not start; what tests measured is printed.

A test that measures gives `record_property(heading, row)`; the rows of one heading become a table after the run.
"""

import functools
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread each, before PyTorch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import fusion_onnx


@functools.cache
def why_no_cuda() -> str:
    for status in fusion_onnx.runtime.diagnose():
        if status.alias == "cuda":
            return "" if status.starts else f"CUDA does not start here: {status.reason}"
    return "CUDA does not start here: the installed onnxruntime is built without it"


def on_gpu(parameters: list[object]) -> list[object]:
    """Return the parameters of a GPU test, one of them where there is no GPU: that one is skipped for all."""
    return parameters[:1] if why_no_cuda() else parameters


@pytest.fixture
def cuda():
    """Return torch's first GPU; the CPU build of torch has none where ONNX Runtime has."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return torch.device("cuda", 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and why_no_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=why_no_cuda()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tables: dict[str, list[str]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for heading, row in report.user_properties if report.when == "call" else []:
            tables.setdefault(heading, []).append(str(row))
    for heading, rows in tables.items():
        terminalreporter.write_line(f"\n{heading}")
        for row in sorted(rows):
            terminalreporter.write_line(row)
