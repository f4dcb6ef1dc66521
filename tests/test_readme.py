"""The README is true: its table is the registry's, its examples run, the files it names are there."""

import re
import subprocess
import sys

from tests.readme import README, generated

TEXT = README.read_text()


def test_the_table_is_the_registrys():
    assert generated(TEXT) == TEXT, "run make readme"


def test_the_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    cpu = [block.replace('providers="cuda"', 'providers="cpu"') for block in blocks]
    assert len(cpu) == 5
    script = tmp_path / "readme.py"
    script.write_text("\n".join(cpu))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"two_views.onnx", "midrange.onnx"}


def test_the_ten_lines_are_ten():
    block = re.search(r"## Ten lines\n\n```python\n(.*?)```", TEXT, re.S).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
