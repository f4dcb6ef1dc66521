"""The plugin in sessions of its own, each in a process of its own, as a user's project would have it."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

TESTS = """
    import onnx
    import pytest
    import torch

    import fusion_onnx
    from fusion_onnx.testing import ParityError

    torch.manual_seed(0)
    XS = (torch.randn(4, 3), torch.randn(4, 3))


    def mean():
        return fusion_onnx.FusionLayer(fusion_onnx.create("mean", dims=[3, 3]))


    def total():
        return fusion_onnx.FusionLayer(fusion_onnx.create("sum", dims=[3, 3]))
"""
PASSING = """
    def test_right(assert_parity):
        verdict = assert_parity(mean(), XS)
        assert verdict.passed
        assert any(finding.case.startswith("NaN") for finding in verdict.findings)
        few = assert_parity(total(), XS, battery=False, dynamic=None, opset=20)
        assert [finding.case for finding in few.findings] == ["as given", "NaN and Inf"]
"""
FAILING = """
    def test_wrong(assert_parity):
        model = fusion_onnx.export(total(), XS, verify=False)
        assert_parity(mean(), XS, model=model, battery=False)
"""


def options():
    """The plugin by name, until the package that is installed registers it."""
    registered = any(entry.value == "fusion_onnx.testing.pytest_plugin" for entry in entry_points(group="pytest11"))
    return ["-W", "error"] if registered else ["-W", "error", "-p", "fusion_onnx.testing.pytest_plugin"]


def run(pytester, *arguments):
    return pytester.runpytest_subprocess(*options(), *arguments, timeout=300)


def test_a_right_model_passes_and_a_wrong_one_shows_the_verdict_alone(pytester):
    pytester.makepyfile(
        TESTS
        + PASSING
        + FAILING
        + """
    def test_error_is_one_that_tests_know():
        from fusion_onnx.testing import assert_parity

        with pytest.raises(AssertionError, match="findings failed") as caught:
            assert_parity(mean(), XS, model=fusion_onnx.export(total(), XS, verify=False), battery=False)
        assert isinstance(caught.value, ParityError)
        assert not caught.value.verdict.passed
        assert all(reason in str(caught.value) for reason in caught.value.verdict.reasons)
    """
    )
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=1)
    output = result.stdout.str()
    result.stdout.fnmatch_lines(
        ["fusion-onnx: *", "*the model differs from eager execution on CPUExecutionProvider: *"]
    )
    result.stdout.fnmatch_lines(["E *batch 4, y: error: at *the model gives*eager*allowed*", "E *where it starts: *"])
    assert "tolerance: " in output
    assert "assert_parity(mean(), XS, model=model, battery=False)" in output
    shown = [line for line in output.splitlines() if line.endswith("ParityError")]
    assert shown
    assert all("test_a_right_model" in line for line in shown), "the traceback ends in the test"
    assert "raise ParityError" not in output
    assert "def checked" not in output


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "with xdist"])
def test_the_report_has_every_verdict_of_the_session(pytester, workers):
    pytester.makepyfile(TESTS + PASSING + FAILING)
    result = run(pytester, "--fusion-report=page.html", *workers)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["fusion-onnx: 3 verdicts in *page.html"])
    page = (pytester.path / "page.html").read_text(encoding="utf-8")
    assert "3 checks: 2 passed, 1 failed." in page
    assert page.count("<article") == 3
    assert page.count("Where it starts") == 1
    assert "test_<wbr>wrong" in page


def test_a_report_without_verdicts_says_so_and_one_without_a_folder_is_refused(pytester):
    pytester.makepyfile("def test_nothing(): pass")
    result = run(pytester, "--fusion-report=page.html")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["fusion-onnx: *, report: page.html", "fusion-onnx: 0 verdicts in *page.html"])
    assert "Nothing was compared." in (pytester.path / "page.html").read_text(encoding="utf-8")
    result = run(pytester, "--fusion-report=nowhere/page.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--fusion-report: the folder *nowhere does not exist; make it first."])


def test_loading_the_plugin_brings_nothing_heavy():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'numpy', 'jinja2'}"
    code = f"import sys, fusion_onnx.testing.pytest_plugin; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
