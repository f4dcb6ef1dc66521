"""The site of the documentation: it has every public name, it builds without a warning, it needs no network."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

import fusion_onnx
from fusion_onnx import cli
from fusion_onnx.verification import backends

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_one_place_in_the_reference(hooks):
    places = [name for page in hooks.reference().values() for name in page]
    assert sorted(places) == sorted(fusion_onnx.__all__), "docs/api has an entry, `::: fusion_onnx.NAME`, for each name"


@pytest.mark.parametrize(
    ("source", "uri", "link", "expected"),
    [
        ("README.md", "index.md", "docs/json.md#verdict", "json.md#verdict"),
        ("README.md", "index.md", "benchmarks/results/fusions.png", "benchmarks/results/fusions.png"),
        ("docs/performance.md", "performance.md", "../benchmarks/results/export.md", "benchmarks/results/export.md"),
        ("docs/api/define.md", "api/define.md", "../strategies.md", "../strategies.md"),
        ("docs/stability.md", "stability.md", "../CHANGELOG.md", "changelog.md"),
        ("docs/api/define.md", "api/define.md", "../../README.md#ten-lines", "../index.md#ten-lines"),
        ("README.md", "index.md", "docs/missing.md", "docs/missing.md"),  # which mkdocs then reports
    ],
)
def test_links_between_files_are_links_between_pages(hooks, source, uri, link, expected):
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / source), src_uri=uri))
    config = SimpleNamespace(nav=[])
    assert hooks.on_page_markdown(f"See [it]({link}).", page=page, config=config) == f"See [it]({expected})."


def test_the_page_on_verification_lists_every_runtime(hooks):
    text = (ROOT / "docs" / "verification.md").read_text("utf-8")
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / "docs/verification.md"), src_uri="x.md"))
    shown = hooks.on_page_markdown(text, page=page, config=SimpleNamespace(nav=[]))
    for name in backends.names():
        assert f"| `{name}` | {backends.get(name).title} | `{backends.get(name).install}` |" in shown
        assert f"`{name}`" not in text


@pytest.mark.slow
def test_the_site_builds_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text("utf-8") for path in tmp_path.rglob("*.html")}
    for name, text in pages.items():
        loads = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]*)", text)
        assert not loads, name
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text("utf-8")), style.name
    reference = "".join(text for name, text in pages.items() if name.startswith("api"))
    for name in fusion_onnx.__all__:
        entry = re.search(rf'<h2 id="fusion_onnx\.{name}".*?</h2>', reference, re.S)
        assert entry, name
        if name != "fusion":  # the second name of a class, in words
            assert f"doc-symbol-{kind(getattr(fusion_onnx, name))}" in entry[0], name
    for method in ("fuse", "decompose", "calculate_n", "get_dims", "to_config", "get_name"):  # some are of base classes
        assert f'id="fusion_onnx.Fusion.{method}"' in reference, method
    for name in fusion_onnx.names():
        assert f"fusion_onnx.fusions.{name}." in pages["api/strategies.html"], name
    for command in get_command(cli.app).commands:
        assert re.search(rf'<h2 id="fusion-onnx-{command}">', pages["api/command_line.html"]), command


def kind(value):
    """What the reference calls it."""
    if isinstance(value, type):
        return "class"
    return "module" if inspect.ismodule(value) else "function" if callable(value) else "attribute"
