"""The README's generated part: `python -m tests.readme` writes it again, test_readme.py compares."""

from pathlib import Path

import fusion_onnx

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- strategies: written by `make readme` -->\n", "<!-- end of strategies -->"


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


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
