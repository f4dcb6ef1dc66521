"""The design, held: one strategy is one file, importing is light, names and bits in their places."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import fusion_onnx
from models import digits

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RUFF = Path(sys.executable).parent / "ruff"
SAMPLES = dict(re.findall(r"^```python\n# (\w+/\S+\.py)\n(.*?)^```", CONTRIBUTING, re.M | re.S))
"""The files that CONTRIBUTING.md adds, by where it puts them."""
(FORM,) = re.findall(r"^```python\n(    @form.*?)^```", CONTRIBUTING, re.M | re.S)
"""The method that it adds to its strategy."""
STRATEGY = "fusion_onnx/fusions/midrange.py"
COMMAND = "fusion_onnx/cli/nodes.py"


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
    """A copy of the repository with CONTRIBUTING.md's samples, but its command, and a trained strategy."""
    root = tmp_path_factory.mktemp("extended") / "copy"
    ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "dist")
    shutil.copytree(ROOT, root, ignore=ignore)
    files = {**SAMPLES, STRATEGY: f"{SAMPLES[STRATEGY]}\n{FORM}", "fusion_onnx/fusions/scaled_midrange.py": SCALED}
    for name, text in files.items():
        if name != COMMAND:
            (root / name).write_text(text, encoding="utf-8")
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
    assert said == "fusion_onnx.midrange.default midrange_variadic_k3"  # the cheaper of its two forms


def test_the_command_line_lists_it(extended):
    said = python(extended, "sys.argv[1:] = ['list', '--json']; from fusion_onnx.cli import main; main()")
    assert '"midrange"' in said


def called(root, *arguments):
    line = [sys.executable, "-m", "fusion_onnx", *map(str, arguments)]
    return subprocess.run(line, cwd=root, env=environment(root), capture_output=True, text=True, check=False)


def test_adding_a_command_touches_one_file_and_lists_it_last(extended):
    def commands():
        return re.findall(r"^│ (\w+) +\w", called(extended, "--help").stdout.partition("Commands")[2], re.MULTILINE)

    before, placed = commands(), ["list", "export", "run", "verify", "matrix", "inspect", "tune", "bench", "doctor"]
    (extended / COMMAND).write_text(SAMPLES[COMMAND], encoding="utf-8")
    assert before[: len(placed)] == commands()[: len(placed)] == placed
    assert [name for name in commands() if name not in before] == ["nodes"]
    assert called(extended, "nodes", "models/digits.onnx").stdout.splitlines()[0] == "Concat × 1"
    assert json.loads(called(extended, "nodes", "models/digits.onnx", "--json").stdout)["Concat"] == 1
    refused = called(extended, "nodes", "README.md")
    assert refused.returncode == 2
    assert re.fullmatch("error: .*README.md.*\n", refused.stderr)


def test_adding_a_target_touches_one_file(extended, tmp_path):
    source, path = extended / "models" / "digits.onnx", tmp_path / "digits.onnx"
    assert called(extended, "deploy", "plain_onnx", source, "-o", path).stdout == f"wrote {path}\n"
    assert onnx.load(source).functions
    assert not onnx.load(path).functions
    inputs = [x.numpy() for x in digits.example_inputs()]
    results = [fusion_onnx.Session(file, "cpu").run(*inputs)[0] for file in (source, path)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    assert called(extended, "deploy", "plain_onnx", source, "-o", path).returncode == 2  # it is there already


def test_adding_a_runtime_touches_one_file(extended):
    said = python(
        extended,
        "from fusion_onnx.testing.matrix import matrix;"
        "table = matrix(['midrange', 'sum'], ['onnxruntime_unoptimized'], cases=1);"
        "print(table.passed, [(cell.runtime, cell.verdict, cell.compared > 9) for cell in table.cells])",
    )
    assert said == f"True {[('onnxruntime_unoptimized', 'equal', True)] * 2}"


def test_adding_a_form_touches_one_method(extended):
    said = python(
        extended,
        "import torch, fusion_onnx as f; m = f.create('midrange', dims=[4] * 3);"
        "xs = [torch.randn(3, 4) for _ in 'abc'];"
        "result = f.export(m, (xs,), form='variadic');"
        "body = [node.op_type for node in result.model.functions[0].node];"
        "print(list(m.forms()), result.model.graph.node[0].op_type, body)",
    )
    assert said == "['chain', 'variadic'] midrange_variadic_k3 ['Max', 'Min', 'Add', 'Constant', 'Div']"


def test_the_samples_are_in_the_house_s_style(extended):
    files = [extended / name for name in SAMPLES]
    (extended / COMMAND).write_text(SAMPLES[COMMAND], encoding="utf-8")
    for rule in (["check"], ["format", "--check"]):
        done = subprocess.run([RUFF, *rule, *files], cwd=extended, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports(path):
    importlib.import_module(f"benchmarks.{path.stem}")


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
