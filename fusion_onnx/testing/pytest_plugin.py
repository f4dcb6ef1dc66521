"""For pytest: the fixture `assert_parity`, and `--fusion-report=FILE`, one page with every verdict of the session.

    def test_mine(assert_parity):
        assert_parity(MyNetwork(), (torch.randn(4, 8),))

The plugin is loaded wherever this package is installed, so it imports torch only when the fixture is used.
"""

import json
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_onnx.file_format import version
from fusion_onnx.files import vacant

if TYPE_CHECKING:
    from fusion_onnx.verification import Verdict

_VERDICTS = pytest.StashKey[list[dict[str, Any]]]()
_ATTRIBUTE = "fusion_onnx_verdicts"  # on a test's report, which pytest-xdist carries from its workers as JSON


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fusion-report`."""
    parser.getgroup("fusion-onnx").addoption(
        "--fusion-report",
        metavar="FILE",
        help="write one HTML page with the verdicts of all tests that call assert_parity (also under pytest-xdist)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a report that could not be written, before the tests run; and collect for one that can."""
    path = config.getoption("--fusion-report")
    if not path or hasattr(config, "workerinput"):  # a worker of pytest-xdist: the controller writes
        return
    path = Path(path).absolute()
    try:
        vacant(path)
    except OSError as error:
        raise pytest.UsageError(f"--fusion-report: {error}") from error
    if find_spec("jinja2") is None:
        raise pytest.UsageError("--fusion-report needs jinja2, which comes with torch: pip install jinja2")
    config.pluginmanager.register(_Page(path), "fusion_onnx_report")


def pytest_report_header(config: pytest.Config) -> str:
    """Say which version proves parity, and where the report goes."""
    path = config.getoption("--fusion-report")
    return f"fusion-onnx: {version()}" + (f", report: {path}" if path else "")


@pytest.fixture
def assert_parity(request: pytest.FixtureRequest) -> "Callable[..., Verdict]":
    """Fail unless a module, exported to ONNX, computes what eager execution does: `assert_parity(module, inputs)`.

    Takes what `fusion_onnx.testing.assert_parity` takes, and returns the verdict.
    """
    from fusion_onnx.testing.parity import ParityError
    from fusion_onnx.testing.parity import assert_parity as check

    def keep(verdict: "Verdict", location: Any = None) -> None:
        data = {"verdict": verdict.to_dict(), "location": None if location is None else location.to_dict()}
        request.node.stash.setdefault(_VERDICTS, []).append(data)

    def checked(module: Any, inputs: Any, **options: Any) -> "Verdict":
        __tracebackhide__ = True
        try:
            verdict = check(module, inputs, **options)
        except ParityError as error:
            keep(error.verdict, error.location)
            raise
        keep(verdict)
        return verdict

    return checked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand the fixture's verdicts to the test's report."""
    report = yield
    verdicts = item.stash.get(_VERDICTS, [])
    if verdicts:
        from fusion_onnx.verification.verdict import plain

        setattr(report, _ATTRIBUTE, json.dumps(plain(verdicts)))
        verdicts.clear()
    return report


class _Page:
    """Collects the verdicts of the session, and writes them when it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verdicts: list[tuple[str, dict[str, Any]]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the verdicts off a test's report."""
        self._verdicts += [(report.nodeid, data) for data in json.loads(getattr(report, _ATTRIBUTE, "[]"))]

    def pytest_sessionfinish(self) -> None:
        """Write the page; in the order of the tests' names, for workers finish in any."""
        from fusion_onnx.verification.report import Checked, write_html

        ordered = sorted(self._verdicts, key=lambda verdict: verdict[0])
        write_html(self._path, checks=[Checked(name, **data) for name, data in ordered])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where the page is."""
        count = len(self._verdicts)
        terminalreporter.write_line(f"fusion-onnx: {count} verdict{'s' * (count != 1)} in {self._path}")
