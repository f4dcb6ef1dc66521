"""The README is true: its table is the registry's, its examples run, the files it names are there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import README, generated

TEXT = README.read_text()


def test_the_table_is_the_registrys():
    assert generated(TEXT) == TEXT, "run make readme"


def test_the_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    cpu = [block.replace('providers="cuda"', 'providers="cpu"') for block in blocks if not block.startswith("# ")]
    assert len(cpu) == 5
    script = tmp_path / "readme.py"
    script.write_text("\n".join(cpu))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"two_views.onnx", "midrange.onnx"}


@pytest.mark.slow
def test_the_page_on_strategies_runs(tmp_path):
    page = (README.parent / "docs" / "strategies.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "gated.py").write_text(block)
    done = subprocess.run([sys.executable, "gated.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "passed" in done.stdout, done.stderr


def test_the_ten_lines_are_ten():
    block = re.search(r"## Ten lines\n\n```python\n(.*?)```", TEXT, re.S).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


LEFT_OUT = {
    "make demo": "a checkout's own",
    'pip install "fusion-onnx[gpu]"': "instead of [cpu], with a card",
    'providers="cuda"': "with a card",
}
"""Blocks that not every reader runs, by a line of theirs."""
CHECKOUT = Path(__file__).parent.parent


@pytest.mark.slow
def test_each_block_runs_for_a_reader_who_has_only_what_it_told_them_to_install(tmp_path):
    """Outside a checkout, in a fresh environment: the install line is met by the wheel that is built here."""
    python, folder = tmp_path / "env" / "bin" / "python", tmp_path / "reader"
    folder.mkdir()
    wheels = tmp_path / "wheels"
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, CHECKOUT])
    run([sys.executable, "-m", "venv", tmp_path / "env"])
    (wheel,) = wheels.glob("*.whl")
    install = [python, "-m", "pip", "install", "-q", "-c", CHECKOUT / "constraints.txt"]
    assert 'pip install "fusion-onnx[all]"' in TEXT
    run([*install, f"{wheel}[all]"])
    blocks = re.findall(r"```(python|sh)\n(.*?)```", TEXT, re.S)
    assert len(blocks) >= 12
    left_out = set()
    for language, block in blocks:
        if line := next((line for line in LEFT_OUT if line in block), ""):
            left_out.add(line)
            continue
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block)
        elif language == "python":
            shared = folder / "session.py"  # a reader goes on in one session
            shared.write_text((shared.read_text() if shared.exists() else "") + block)
            run([python, shared.name], folder)
        else:
            script = re.sub(
                r'pip install "fusion-onnx(\[\w+\])"',
                rf'pip install -q -c {CHECKOUT}/constraints.txt "{wheel}\1"',
                block,
            )
            run(["bash", "-euc", script], folder, {"PATH": f"{python.parent}:{os.environ['PATH']}"})
    assert left_out == {*LEFT_OUT}
    written = {path.name for path in folder.iterdir()}
    assert {
        "two_views.onnx",
        "y.npz",
        "fast.onnx",
        "forms.json",
        "views.onnx",
        "matrix.html",
        "midrange.onnx",
    } <= written


def run(command, folder=None, variables=None):
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FUSION_ONNX_NODE_MODULES")
    }
    environment |= {"COLUMNS": "100", **(variables or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
