"""Generated pages: `make readme` writes the README's table and docs/files.md again, test_readme.py compares."""

import ast
from pathlib import Path

import fusion_onnx

ROOT = Path(__file__).parent.parent
README, FILES = ROOT / "README.md", ROOT / "docs" / "files.md"
START, END = "<!-- strategies: written by `make readme` -->\n", "<!-- end of strategies -->"
REGISTRIES = ("fusions", "backends", "targets", "cli")
"""Folders in which a file is an entry: adding one changes no page."""
HEAD = """# Every file in a line

What each file holds, in the words of its first line. Strategies, runtimes, targets and commands are left out: each has
a file of its own, in a folder of its kind. [Contributing](../CONTRIBUTING.md) says how to add one.
"""


def table() -> str:
    lines = ["| strategy | output | n | l | in tinyBIG |", "|---|---|---|---|---|"]
    for name in fusion_onnx.names():
        cls = fusion_onnx.get(name)
        cells = [f"`{name}`", cls.formula, cls.rule_n, cls.rule_l, ", ".join(f"`{spelt}`" for spelt in cls.tinybig)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def generated(text: str) -> str:
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{table()}{END}{after}"


def files() -> str:
    """Return the page: each folder with its files, and the first line of each file's docstring."""
    lines = [HEAD]
    paths = [*(ROOT / "fusion_onnx").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]
    shown = [path for path in paths if path.name != "__main__.py" and not {*REGISTRIES} & {*path.parent.parts}]
    for folder in sorted({path.parent for path in shown}):
        lines += [f"## `{folder.relative_to(ROOT)}/`", "", "| file | |", "|---|---|"]
        for path in sorted(path for path in shown if path.parent == folder):
            text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            sentence = text.partition("\n")[0].replace("|", "\\|")
            lines.append(f"| `{path.name}` | {sentence} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    README.write_text(generated(README.read_text("utf-8")), "utf-8")
    FILES.write_text(files(), "utf-8")
