"""The README and the pages that go on from it are true: table and picture are generated, examples run, links lead."""

import ast
import os
import re
import subprocess
import sys

import pytest

from benchmarks import graphs
from tests.readme import FILES, README, files, generated

CHECKOUT = README.parent
DOCS = CHECKOUT / "docs"
TEXT = README.read_text()
PAGES = {page: page.read_text() for page in (README, DOCS / "guide.md", DOCS / "command_line.md")}
"""A reader goes through them in this order, in one folder and one session."""


def blocks(language="python|sh"):
    return [block for text in PAGES.values() for block in re.findall(rf"```({language})\n(.*?)```", text, re.S)]


def test_the_table_is_the_registrys():
    assert generated(TEXT) == TEXT, "run make readme"
    assert files() == FILES.read_text("utf-8"), "run make readme"


def test_the_examples_run(tmp_path):
    code = [block for _, block in blocks("python") if not block.startswith("# ")]
    assert len(code) == 5
    script = tmp_path / "readme.py"
    script.write_text("\n".join(code).replace('providers="cuda"', 'providers="cpu"'))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"views.onnx", "midrange.onnx"}


def test_the_picture_shows_what_the_two_exports_write():
    """Torch names its nodes otherwise from version to version; the operators are what is compared of its file."""
    picture = graphs.PICTURE.read_text(encoding="utf-8")
    boxes = [re.findall(r"<text[^>]*>([^<]+)</text>", box) for box in re.findall(r'<g id="node.*?</g>', picture, re.S)]
    plain, ours = graphs.models()
    ports = [[info.name] for model in (plain, ours) for info in (*model.graph.input, *model.graph.output)]
    drawn = sorted(box[0] for box in boxes if box not in ports)
    assert drawn == sorted(graphs.lines_of(node, model)[0] for model in (plain, ours) for node in model.graph.node)
    assert all(graphs.lines_of(node, ours) in boxes for node in ours.graph.node)
    for name, model in {"torch.onnx": plain, "fusion_onnx": ours}.items():
        title = f"{name}.export: {len(model.graph.node)} nodes"
        assert title in picture and title in TEXT, "run python -m benchmarks.graphs, and say it in the README"


def test_the_figure_of_speed_is_the_measured_one():
    (speed,) = re.findall(r"\*\*Speed:\*\* (\S+ ×) as fast as a plain export", TEXT)
    targets = (CHECKOUT / "benchmarks" / "results" / "targets.md").read_text().splitlines()
    k4 = next(i for i, line in enumerate(targets) if line.startswith("| entrywise, k = 4 of (4096, 1024)"))
    (measured,) = [line for line in targets[k4 : k4 + 4] if "3 × a plain export, geometric mean" in line]
    assert f"| {speed} |" in measured


@pytest.mark.parametrize(
    "page", sorted({README, CHECKOUT / "CONTRIBUTING.md", *DOCS.glob("*.md")}), ids=lambda page: page.name
)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.slow
def test_the_page_on_strategies_runs(tmp_path):
    page = (DOCS / "strategies.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "gated.py").write_text(block)
    done = subprocess.run([sys.executable, "gated.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "passed" in done.stdout, done.stderr


def test_the_ten_lines_are_ten():
    block = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(block))) <= 10


LEFT_OUT = {
    "make demo": "a checkout's own",
    'pip install "fusion-onnx[gpu]"': "instead of [cpu], with a card",
    'providers="cuda"': "with a card",
}
"""Blocks that not every reader runs, by a line of theirs."""


@pytest.mark.slow
def test_each_block_runs_for_a_reader_who_has_only_what_the_pages_install(tmp_path):
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
    assert len(blocks()) >= 14
    left_out = set()
    for _, block in blocks("python"):  # files first: the README leads to the page that has it
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block)
    for language, block in blocks():
        if line := next((line for line in LEFT_OUT if line in block), ""):
            left_out.add(line)
        elif re.match(r"# \w+\.py\n", block):
            continue
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
        "views.onnx",
        "network.onnx",
        "y.npz",
        "fast.onnx",
        "forms.json",
        "checked.onnx",
        "matrix.html",
        "midrange.onnx",
        "views.xml",
        "views.bin",
    } <= written


def run(command, folder=None, variables=None):
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FUSION_ONNX_NODE_MODULES")
    }
    environment |= {"COLUMNS": "100", **(variables or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
