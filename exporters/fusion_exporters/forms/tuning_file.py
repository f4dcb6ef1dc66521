"""The file that `tune` writes and `export(form=...)` reads: which form was fastest, of what, where, at which size."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion_exporters.errors import ExportError
from fusion_onnx.files import write_file

FORMAT = 2


@dataclass(frozen=True)
class Timing:
    """One fusion at one size: its function's name in the first form, where it ran, and each form's seconds.

    rows: of each input; width: the inputs' widths together; dtype: as torch names it, "float32".
    """

    fusion: str
    function: str
    provider: str
    rows: int
    width: int
    dtype: str
    form: str
    seconds: Mapping[str, float]


@dataclass
class Tuning:
    """What was measured, and on what machine; written as JSON."""

    machine: str = field(default_factory=lambda: f"{platform.machine()}, {os.cpu_count()} cores")
    entries: list[Timing] = field(default_factory=list)

    def form(self, function: str, provider: str, rows: int, width: int, dtype: str) -> str | None:
        """Return the fastest form of a function on a provider at the nearest size; None if it was not measured."""
        key = (function, provider, dtype)
        matches = [e for e in self.entries if (e.function, e.provider, e.dtype) == key]

        def distance(entry: Timing) -> float:
            return _ratio(entry.rows, rows) + _ratio(entry.width, width)

        return min(matches, key=distance).form if matches else None

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file; raises OSError where it cannot be written, or is there and not to be replaced."""
        data = {"format": FORMAT, "machine": self.machine, "fusions": [asdict(e) for e in self.entries]}
        write_file(path, json.dumps(data, indent=1).encode(), b"\n", overwrite=overwrite)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Tuning":
        """Read the file; raises ExportError where it is none that `tune` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ExportError(f"{path} has format {data['format']!r}; this version reads {FORMAT}. Tune again.")
            return cls(str(data["machine"]), [_timing(entry) for entry in data["fusions"]])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(f"{path} is no file of fusion-onnx tune ({error!r:.200}).") from error


def size_of(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the rows of inputs with these shapes, and their widths together."""
    return math.prod(shapes[0][:-1]), sum(shape[-1] if shape else 1 for shape in shapes)


def _timing(entry: Mapping[str, Any]) -> Timing:
    """Return an entry of a tuning file; raises TypeError, ValueError or KeyError where it is none."""
    timing = Timing(**entry)
    texts = timing.fusion, timing.function, timing.provider, timing.dtype, timing.form
    sizes = timing.rows, timing.width
    if not all(isinstance(text, str) for text in texts) or not all(
        type(size) is int and 0 <= size < 2**63 for size in sizes
    ):
        raise TypeError(f"entry {dict(entry)!r:.80}")
    return timing


def _ratio(a: int, b: int) -> float:
    return abs(math.log(max(a, 1) / max(b, 1)))
