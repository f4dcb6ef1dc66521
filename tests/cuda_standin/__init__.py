"""ONNX Runtime's CUDA provider without a card: `python -m tests.cuda_standin FILE ...` runs pytest on it.

`standin.c` is one library under the names of all that the provider loads. Sessions, the choice of kernels, placement,
copies, bindings, graphs and the number of launches are ONNX Runtime's own; what kernels and products compute, times,
and torch's side of CUDA are not there. The tests on it, `bindings.py` and `placement.py`, run in processes of their
own, since the loader takes the library's folder from the environment at the start.
"""

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCE = Path(__file__).parent / "standin.c"
OPENED = ("libcudnn.so.9",)
"""What the provider opens while it runs, and so does not name as a library it needs."""


class Counts(ctypes.Structure):
    """`struct counts` of standin.c."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            *("launches", "empty_launches", "to_device", "to_host", "on_device", "products"),
            *("synchronisations", "allocations", "captures", "graph_launches"),
        )
    ]


def counts() -> Counts:
    """Return what was done since the process began."""
    now = Counts()
    ctypes.CDLL("libcuda.so.1").standin_counts(ctypes.byref(now))
    return now


@contextmanager
def counted() -> Iterator[Counts]:
    """Give counts that hold, at the end, what was done meanwhile."""
    before, during = counts(), Counts()
    yield during
    after = counts()
    for name, _ in Counts._fields_:
        setattr(during, name, getattr(after, name) - getattr(before, name))


def provider() -> Path | None:
    """Return the wheel's CUDA provider, if there is one."""
    package = importlib.util.find_spec("onnxruntime")
    path = Path(str(package and package.origin)).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.exists() else None


def why_not() -> str:
    """Return why the provider cannot run on the stand-in here; nothing where it can."""
    if provider() is None:
        return "no stand-in for CUDA: the installed onnxruntime has no CUDA provider for Linux"
    if importlib.util.find_spec("nvidia") is not None:
        return "no stand-in for CUDA: pip has installed CUDA's own libraries, which ONNX Runtime loads first"
    lacking = [tool for tool in ("cc", "readelf") if shutil.which(tool) is None]
    return f"no stand-in for CUDA: no {' and no '.join(lacking)} here" if lacking else ""


def build(folder: Path) -> None:
    """Compile the library, with every function that the provider wants, and link all names to it."""
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", str(provider())]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"\(NEEDED\).*\[(lib(?:cu|nv).*)\]", text)
    symbols = re.findall(r" UND (\w+)(?:@(lib(?:cu|nv)[\w.]+))?", text)  # with a version, which is the library's name
    functions = {name: version for name, version in symbols if version or re.match("cu[A-Z]", name)}
    source = SOURCE.read_text(encoding="utf-8")
    rest = [name for name in functions if not re.search(rf"\b{name}\(|\({name}\)", source)]
    (folder / "rest.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in rest))
    versions: dict[str, list[str]] = {}
    for name, version in functions.items():
        if version:
            versions.setdefault(version, []).append(name)
    script = "".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items())
    (folder / "versions.map").write_text(script)
    library = folder / "libstandin.so"
    sources = [str(SOURCE), str(folder / "rest.c"), f"-Wl,--version-script={folder / 'versions.map'}"]
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-pthread", "-o", str(library), *sources], check=True)
    for name in {*libraries, *OPENED}:
        (folder / name).symlink_to(library.name)


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of the library, made once a process and gone with it."""
    directory = tempfile.TemporaryDirectory(prefix="cuda_standin_")
    build(Path(directory.name))
    return directory


def run(*arguments: str, captured: bool = True) -> subprocess.CompletedProcess[str]:
    """Run pytest with these arguments where CUDA is the stand-in; captured: its words are kept, not printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"LD_LIBRARY_PATH": folder().name, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=captured, text=True, check=False)
