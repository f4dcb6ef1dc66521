"""The scripts of examples/ print what is stored beside them; `python -m tests.test_scripts` stores it again."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import fusion_onnx

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SCREEN = 45


def output(script, folder):
    """Return what a script prints when it is run from an empty folder, with its package, if it has one, installed."""
    here, packages, package = folder / "here", folder / "packages", script.with_suffix("")
    here.mkdir()
    if package.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        subprocess.run([*pip, "--no-build-isolation", "--no-deps", "--target", packages, package], check=True)
    # in a CI pytest prints long lines whole
    others = ("PYTEST_", "PYTHONDONTWRITE", "CI", "BUILD_NUMBER")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    path = os.pathsep.join([str(packages), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**kept, "PYTHONPATH": path, "PYTHONUTF8": "1", "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=here, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [*here.iterdir()], "the script leaves files where it is run"
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_prints_what_is_stored(script, tmp_path):
    before = {*EXAMPLES.rglob("*")}
    stored = script.with_suffix(".txt")
    assert stored.exists(), "run python -m tests.test_scripts"
    assert output(script, tmp_path) == stored.read_text(encoding="utf-8")
    assert {*EXAMPLES.rglob("*")} == before, "the script leaves files beside it"


def test_the_scripts_are_those_of_the_table():
    named = re.findall(r"^\| \[(\d\d_\w+\.py)\]\(\1\) \(\[prints\]\((\d\d_\w+)\.txt\)\)", page(), re.M)
    assert named == [(script.name, script.stem) for script in SCRIPTS]
    assert [script.name[:2] for script in SCRIPTS] == [f"{number:02}" for number in range(1, len(SCRIPTS) + 1)]
    assert {stored.stem for stored in EXAMPLES.glob("*.txt")} == {script.stem for script in SCRIPTS}


def test_the_page_names_files_that_are_there():
    links = re.findall(r"\]\(([^)]+)\)", page())
    assert links
    assert [link for link in links if not (EXAMPLES / link).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_one_screen_and_says_what_to_install(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= SCREEN
    (needs,) = re.findall(r"^Install: (.+)$", ast.get_docstring(ast.parse(text)), re.M)
    row = next(line for line in page().splitlines() if f"({script.name})" in line)
    assert {*re.findall(r"fusion-onnx\[\w+\]|\./\w+", needs)} == {*re.findall(r"fusion-onnx\[\w+\]|\./\w+", row)}


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda script: script.stem)
def test_a_script_uses_public_names_only(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("fusion_")} == {"fusion_onnx"}
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_package(node.value)}
    assert names <= {*fusion_onnx.__all__}


def is_package(node):
    return isinstance(node, ast.Name) and node.id == "fusion_onnx"


def page():
    return (EXAMPLES / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            script.with_suffix(".txt").write_text(output(script, Path(folder)), encoding="utf-8")
