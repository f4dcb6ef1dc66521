"""Differences between runtimes that are documented: each a folder with what is known, and the smallest file showing it.

A folder holds `difference.json`, `model.onnx` and `inputs.npz`. The matrix marks what an entry covers, so that what is
not documented stands out.
"""

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One documented difference.

    kind: "differs" or "cannot". strategies, dtypes, values: patterns as fnmatch has them ("*", "NaN in *") that say
    where it shows; message: text that the runtime's error or the finding's detail contains, "" for any.
    """

    id: str
    runtime: str
    kind: str
    title: str
    why: str
    strategies: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = ("*",)
    values: tuple[str, ...] = ("*",)
    message: str = ""

    def covers(self, strategy: str, runtime: str, dtype: str, kind: str, values: str, detail: str) -> bool:
        """Return whether a problem of the matrix is this difference."""
        return (
            (runtime, kind) == (self.runtime, self.kind)
            and _any(strategy, self.strategies)
            and _any(dtype, self.dtypes)
            and _any(values, self.values)
            and self.message in detail
        )


def _any(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def load(folder: Path) -> list[Difference]:
    """Read all entries of a folder of differences."""
    found = []
    for path in sorted(folder.glob("*/difference.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        found.append(Difference(id=path.parent.name, **fields))
    return found
