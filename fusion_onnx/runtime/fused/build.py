"""Compile the loops with the C compiler of this machine: when a wheel is built, or by `python build.py`.

Without a compiler, or with one that does not know GCC's vectors, a wheel is pure Python, and sessions do without.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARY = "entrywise.so"
# no contraction to fused multiply-add, and nothing that NaN or rounding would tell apart
_FLAGS = "-std=gnu11 -O3 -fPIC -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden -Wno-psabi"


def compile_library(target: Path = HERE / LIBRARY, flags: Sequence[str] = ()) -> str:
    """Compile it, with these flags after its own; return "" or why that cannot be done."""
    command = shlex.split(os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), ""))
    if not command or not shutil.which(command[0]) or sys.platform == "win32":
        return f"there is no C compiler here ({command[0] if command else 'cc, gcc or clang'})"
    builds: list[tuple[str, list[str]]] = [("base", [])]
    if platform.machine().lower() in ("x86_64", "amd64"):
        builds.append(("avx2", ["-mavx2", "-mf16c"]))
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder, "operator.o"), *(Path(folder, f"{name}.o") for name, _ in builds)]
        steps = [[*_FLAGS.split(), "-c", str(HERE / "operator.c"), "-o", str(objects[0])]]
        for (name, instructions), target_object in zip(builds, objects[1:], strict=True):
            define = f"-DNAME=fusion_onnx_loops_{name}"
            source = str(HERE / "loops.c")
            steps.append([*_FLAGS.split(), *instructions, define, "-c", source, "-o", str(target_object)])
        linked = Path(folder, LIBRARY)
        steps.append(["-shared", "-o", str(linked), *map(str, objects), "-lm"])
        for step in steps:
            process = subprocess.run([*command, *step, *flags], capture_output=True, text=True, check=False)
            if process.returncode:
                return f"{command[0]} failed: {(process.stderr.strip() or 'no word why').splitlines()[0]}"
        part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.part")  # of this build alone
        try:
            shutil.copy(linked, part)
            os.replace(part, target)  # a library that is loaded must not change under its readers
        finally:
            part.unlink(missing_ok=True)
    return ""


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:
    pass
else:

    class Hook(BuildHookInterface):  # type: ignore[misc,type-arg,unused-ignore]
        """What hatchling runs before it packs a wheel, or installs an editable one."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile, and mark the wheel as one for this platform."""
            if reason := compile_library():
                self.app.display_warning(f"fused kernels are left out: {reason}")
                return
            name = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{name}"
            build_data["artifacts"].append(f"/fusion_onnx/runtime/fused/{LIBRARY}")


if __name__ == "__main__":
    sys.exit(compile_library() or 0)
