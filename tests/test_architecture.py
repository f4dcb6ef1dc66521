"""The design, held: one strategy is one file, importing is light, names and bits in their places."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fusion_onnx

ROOT = Path(__file__).parent.parent
STRATEGY = '''
"""Midrange: y = (max x_i + min x_i) / 2, entry by entry."""

import numpy as np
import torch

from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class MidrangeFusion(EntrywiseFusion):
    """The middle of the range of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "(max x_i + min x_i) / 2"

    def fuse(self, xs, w, *buffers):
        return (chain(xs, torch.maximum) + chain(xs, torch.minimum)) / 2

    def reference(self, xs, w):
        return np.sort(np.stack(xs), axis=0)[[0, -1]].mean(0)

    def decompose(self, op, xs, w, *buffers):
        return op.Div(op.Add(chain(xs, op.Max), chain(xs, op.Min)), op.constant(2))
'''


SCALED = '''
"""Scaled midrange: y = w (max x_i + min x_i) / 2, entry by entry, w a trained number."""

import numpy as np
import torch

from fusion_onnx.fusions._entrywise import EntrywiseFusion


class ScaledMidrangeFusion(EntrywiseFusion):
    """The midrange times a trained factor; n = n_1, l = 1, w the factor."""

    formula = "w (max x_i + min x_i) / 2"
    rule_l = "1"

    def __init__(self, dims=None, *, require_parameters=True, **base):
        super().__init__(dims, require_parameters=require_parameters, **base)

    def calculate_l(self):
        return 1

    def fuse(self, xs, w, *buffers):
        stacked = torch.stack(list(xs))
        return w * ((stacked.amax(0) + stacked.amin(0)) / 2)

    def reference(self, xs, w):
        return w * np.sort(np.stack(xs), axis=0)[[0, -1]].mean(0)

    def decompose(self, op, xs, w, *buffers):
        return op.Mul(op.Div(op.Add(op.Max(*xs), op.Min(*xs)), op.constant(2)), w)
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with two strategies more, a file each; one is trained, neither states a bound."""
    root = tmp_path_factory.mktemp("extended") / "copy"
    ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "dist")
    shutil.copytree(ROOT, root, ignore=ignore)
    for name, text in {"midrange": STRATEGY, "scaled_midrange": SCALED}.items():
        (root / "fusion_onnx" / "fusions" / f"{name}.py").write_text(text)
    python(root, "from tests import readme; readme.README.write_text(readme.generated(readme.README.read_text()))")
    return root


def environment(root):
    """Python's path begins with the copy, for subprocesses of its tests too."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "exporters")])}


def python(root, code):
    setup = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'exporters')!r}]; "
    done = subprocess.run(
        [sys.executable, "-c", setup + code],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_adding_a_strategy_touches_one_file(extended):
    said = python(
        extended,
        "import torch, fusion_onnx as f; assert f.__file__.startswith(sys.path[0]); assert 'midrange' in f.names();"
        "m = f.create('midrange', dims=[4, 4, 4]); xs = [torch.randn(3, 4) for _ in 'abc'];"
        "assert torch.equal(m(xs), (torch.stack(xs).amax(0) + torch.stack(xs).amin(0)) / 2);"
        "assert f.from_config(m.to_config()).get_name() == 'midrange';"
        "assert f.fusions.midrange.MidrangeFusion is f.fusions.MidrangeFusion is f.get('midrange');"
        "print(torch.ops.fusion_onnx.midrange.default, f.export(m, (xs,)).model.graph.node[0].op_type)",
    )
    assert said == "fusion_onnx.midrange.default midrange_k3"


def test_the_command_line_lists_it(extended):
    said = python(extended, "sys.argv[1:] = ['list', '--json']; from fusion_onnx.cli import main; main()")
    assert '"midrange"' in said


COMMAND = """
from fusion_onnx.cli.app import Json, command, show


@command()
def greet(name: str, as_json: Json = False) -> None:
    \"\"\"Greet somebody by [bold]name[/].\"\"\"
    if name == "nobody":
        raise ValueError("nobody is there.")
    show(as_json, {"name": name}, [f"Hello, {name}!"])
"""


def test_adding_a_command_touches_one_file_and_lists_it_last(extended):
    def called(*arguments):
        line = [sys.executable, "-m", "fusion_onnx", *arguments]
        return subprocess.run(
            line, cwd=extended, env=environment(extended), capture_output=True, text=True, check=False
        )

    def commands():
        return re.findall(r"^│ (\w+) +\w", called("--help").stdout.partition("Commands")[2], re.MULTILINE)

    before = commands()
    (extended / "fusion_onnx" / "cli" / "example.py").write_text(COMMAND)
    assert before == ["list", "export", "run", "verify", "matrix", "inspect", "tune", "bench", "doctor", "deploy"]
    assert commands() == [*before, "greet"]
    assert called("greet", "world").stdout == "Hello, world!\n"
    assert called("greet", "world", "--json").stdout == '{\n  "name": "world"\n}\n'
    refused = called("greet", "nobody")
    assert (refused.returncode, refused.stderr) == (2, "error: nobody is there.\n")


def test_the_table_bounds_benchmark_and_matrix_have_it(extended):
    said = python(
        extended,
        "from tests import readme, test_bounds; from fusion_onnx.bench import rows;"
        "from fusion_onnx.testing.matrix import matrix; assert readme.__file__.startswith(sys.path[0]);"
        "assert '| `midrange` | (max x_i + min x_i) / 2 | n_1 | 0 |  |' in readme.README.read_text();"
        "assert 'midrange' not in test_bounds.BOUNDED and 'sum' in test_bounds.BOUNDED;"
        "names = ['midrange', 'scaled_midrange']; small = rows.Scenario('small', 3, 5, 4);"
        "times = [rows.row(name, fusion, small, ['eager', 'plain_export', 'ours'], 0.001)"
        "         for name, fusion in rows.fusions(small, names)];"
        "print([(row.strategy, sorted(row.interleaved), row.failed) for row in times]);"
        "table = matrix(names, ['onnxruntime_cpu'], cases=1); assert table.passed, table.notes()",
    )
    times = ["eager", "ours", "plain_export"]
    assert said == str([("midrange", times, {}), ("scaled_midrange", times, {})])


@pytest.mark.slow
def test_every_test_that_goes_through_the_strategies_tests_it(extended):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"]
    selection = ["-k", "midrange", "--ignore", "tests/test_architecture.py"]
    done = subprocess.run(
        [*command, *selection], cwd=extended, env=environment(extended), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 100, done.stdout


def test_importing_is_light():
    for name in (
        "fusion_onnx",
        "fusion_onnx.runtime",
        "fusion_onnx.cli",
        "fusion_onnx.registry",
        "fusion_onnx.testing",
    ):
        said = python(ROOT, f"import {name}; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])")
        assert said == "[]", name
    said = python(ROOT, "import fusion_onnx.cli; print('numpy' in sys.modules or 'fusion_onnx.runtime' in sys.modules)")
    assert said == "False"  # --help comes at once


def test_every_public_name_is_there():
    for name in fusion_onnx.__all__:
        assert getattr(fusion_onnx, name) is not None
    assert fusion_onnx.fusion is fusion_onnx.Fusion
    assert set(fusion_onnx.__all__) <= set(dir(fusion_onnx))
    with pytest.raises(AttributeError, match="no attribute"):
        fusion_onnx.nonsense  # noqa: B018


def test_file_class_op_and_registry_share_one_name():
    import torch

    for name in fusion_onnx.names():
        cls = fusion_onnx.get(name)
        assert cls.__module__ == f"fusion_onnx.fusions.{name}"
        assert cls.strategy() == name
        assert hasattr(torch.ops.fusion_onnx, name)
        assert cls.cases
        assert cls.formula


def test_no_strategy_imports_onnx():
    for path in (ROOT / "fusion_onnx" / "fusions").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("onnx", "onnx_ir", "onnxscript", "fusion_exporters")]
