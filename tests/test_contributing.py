"""CONTRIBUTING.md and the page on architecture are true: what they name is there, and data goes the way they say."""

import re
import sys
from pathlib import Path

import pytest
import torch

from fusion_onnx import FusionLayer, Session, create, export, get, verify
from tests.hashes import hashes

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
HOP = re.compile(r"^\d+\. `(\S+\.py)`: `(\w+)` –", re.M)


class TwoViews(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 8), torch.nn.Linear(5, 8)
        self.vote = FusionLayer(create("mean", dims=[8, 8]))
        self.merge = FusionLayer(create("low_rank_concatenation", dims=[8, 8], n=3, r=2))

    def forward(self, a, b):
        views = self.left(a), self.right(b)
        return self.vote(*views), self.merge(*views)


def prose(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def missing(text):
    """The files and folders that a page names, from the repository's root, and that are not there."""
    code = re.findall(r"`([^`\n]+)`", prose(text))
    paths = {
        words for words in code if re.fullmatch(r"[\w.]+(/[\w.]+)*/|[\w.]+(/[\w.]+)+|\w+\.(py|md|toml|yml|txt)", words)
    }
    paths = {path for path in paths if not path.startswith("site/") and path != "plain.onnx"}  # what is built
    assert len(paths) > 20
    return sorted(path for path in paths if not (ROOT / path).exists())


@pytest.mark.parametrize("text", [CONTRIBUTING, ARCHITECTURE], ids=["contributing", "architecture"])
def test_files_and_folders_that_a_page_names_are_there(text):
    assert missing(text) == []
    assert missing(text + "`tests/nothing.py` `nowhere/` `nothing.toml`") == [
        "nothing.toml",
        "nowhere/",
        "tests/nothing.py",
    ]


def test_names_in_the_table_of_changes_are_in_its_files():
    rows = re.findall(r"^\| (.+) \| (.+) \| (`.+`) \|$", CONTRIBUTING.partition("## Where to change what")[2], re.M)
    assert len(rows) >= 25
    for change, places, names in rows:
        paths = [ROOT / path for path in re.findall(r"`([\w./]+)`", places) if (ROOT / path).exists()]
        files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", text), f"{change}: {name} is not in {places}"


def test_every_room_is_in_the_plan():
    plan = CONTRIBUTING.partition("## The plan")[2].partition("**Arrows.**")[0]
    for package in ("fusion_onnx", "exporters/fusion_exporters"):
        for room in (ROOT / package).iterdir():
            if (room / "__init__.py").exists():
                assert f"| `{package}/{room.name}/` |" in plan, room


def test_hashes_tell_exports_apart_and_are_the_same_every_time():
    names = ["mean", "random_matrix_adaptation"]
    lines = [*hashes(names)]
    assert lines == [*hashes(names)]
    assert len({line.split()[-1] for line in lines}) == len(lines) > sum(len(get(name).cases) for name in names)
    assert "`.venv/bin/python -m tests.hashes`" in CONTRIBUTING


def calls(walk):
    """The functions of the repository that a walk calls, as (file, name), in the order of their first calls."""
    order = {}

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith((f"{ROOT}/fusion_onnx/", f"{ROOT}/exporters/")):
            order.setdefault((frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_code.co_name))

    sys.setprofile(profile)
    try:
        walk()
    finally:
        sys.setprofile(None)
    return [*order]


@pytest.mark.parametrize("title", ["From a module to a file", "From inputs to outputs", "From a module and a file to"])
def test_data_goes_the_way_that_the_page_says(title, tmp_path):
    torch.manual_seed(0)
    module, args, path = TwoViews().eval(), (torch.randn(3, 4), torch.randn(3, 5)), tmp_path / "two.onnx"
    export(module, args, path)  # what is imported or built once is no part of a walk
    walks = {
        "From a module to a file": lambda: export(module, args, path, overwrite=True),
        "From inputs to outputs": lambda: Session(path, "cpu").run(*args),
        "From a module and a file to": lambda: verify(module, path, args).passed,
    }
    hops = HOP.findall(ARCHITECTURE.partition(f"### {title}")[2].partition("###")[0])
    order = calls(walks[title])
    assert len(hops) > 10
    assert [hop for hop in hops if hop not in order] == []
    assert hops == sorted(hops, key=order.index)
