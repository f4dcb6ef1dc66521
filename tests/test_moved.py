"""Old paths of modules lead to the modules of the new paths, and say so."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_onnx._moved import MOVED

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_path_leads_to_the_new_module_and_warns(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new};") as caught:
        exec(f"import {old}")
    assert [warning.filename for warning in caught] == ["<string>"]  # the line that imports it, not ours
    assert sys.modules[old] is importlib.import_module(new)
    assert sys.modules[old].__name__ == sys.modules[old].__spec__.name == new
    exec(f"import {old}")  # once is enough


@pytest.mark.parametrize("old", MOVED)
def test_nothing_is_left_at_an_old_path(old):
    for root in (ROOT, ROOT / "exporters"):
        place = root.joinpath(*old.split("."))
        assert not place.with_suffix(".py").exists()
        assert not (place / "__init__.py").exists()


def python(code):
    """Return what a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("package", ["fusion_onnx", "fusion_exporters"])
def test_each_package_serves_its_old_paths_and_nothing_else(package):
    said = python(f"""if True:
        import sys, warnings, {package}
        warnings.simplefilter("ignore")
        sys.modules["fusion_onnx._moved"].MOVED["{package}.former"] = "fusion_onnx.runtime.fused"
        from {package}.former import why_not_fused
        import {package}.former.body, fusion_onnx.runtime.fused.body
        assert {package}.former is fusion_onnx.runtime.fused
        assert sys.modules["{package}.former.body"] is sys.modules["fusion_onnx.runtime.fused.body"]
        for name in ("{package}.never", "{package}.former.never", "never", "former"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                print(error.name)
    """)
    assert said == [f"{package}.never", "fusion_onnx.runtime.fused.never", "never", "former"]
