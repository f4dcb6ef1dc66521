"""The design, held: one strategy is one file, importing is light, names and bits in their places."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fusion_onnx

ROOT = Path(__file__).parent.parent
STRATEGY = '''
"""Midrange: y = (max x_i + min x_i) / 2, entry by entry."""

import torch

from fusion_onnx.fusions._entrywise import EntrywiseFusion, chain


class MidrangeFusion(EntrywiseFusion):
    """The middle of the range of k tensors (..., n) of one shape; n = n_1, l = 0."""

    formula = "(max x_i + min x_i) / 2"

    def fuse(self, xs, w, *buffers):
        return (chain(xs, torch.maximum) + chain(xs, torch.minimum)) / 2

    def decompose(self, op, xs, w, *buffers):
        return op.Div(op.Add(chain(xs, op.Max), chain(xs, op.Min)), op.constant(2))
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with one file more: nothing else is touched."""
    root = tmp_path_factory.mktemp("extended")
    for folder in ("fusion_onnx", "exporters", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "fusion_onnx" / "fusions" / "midrange.py").write_text(STRATEGY)
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return root


def python(root, *arguments):
    code = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'exporters')!r}]; " + arguments[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
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


def test_the_suite_tests_it(extended):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/test_export.py"]
    done = subprocess.run(
        [*command, "-k", "midrange and float32 and not cuda"], cwd=extended, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout  # one for each case it inherits


def test_importing_is_light():
    for name in ("fusion_onnx", "fusion_onnx.runtime", "fusion_onnx.cli", "fusion_onnx.registry"):
        said = python(ROOT, f"import {name}; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])")
        assert said == "[]", name


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
