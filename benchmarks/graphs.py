"""Draw the README's network as two ONNX graphs: from `torch.onnx.export`, and from `fusion_onnx.export`.

`python -m benchmarks.graphs` runs the README's first example, exports its module both ways, and draws the nodes and
edges of the two files into docs/images/graphs.svg. Graphviz does the layout: its program `dot` has to be installed.
"""

import contextlib
import html
import io
import re
import subprocess
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "graphs.svg"
WIDTH = 800  # pixels; the text is sized to be read at that
FONT = "Helvetica,Arial,sans-serif"
# as viewers of ONNX files do: a colour for each kind of operator, light boxes for the graph's inputs and outputs
KINDS = {
    "#335588": ("MatMul", "Gemm"),
    "#6c4f47": ("Concat", "Split", "Reshape", "Transpose"),
    "#7a2a22": ("Softmax",),
}
OTHER, FUSION = "#4b5563", "#0b7a4b"
PORT = 'fillcolor="#e5e7eb" color="#9ca3af" fontcolor="#111827"'


def models() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return what `torch.onnx.export` and `fusion_onnx.export` write for the README's network."""
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    batch = {0: torch.export.Dim("batch")}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(example, names)
        (file,) = Path(folder).glob("*.onnx")
        ours = onnx.load(file)
        inputs = tuple(torch.randn(8, 64) for _ in ours.graph.input)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            program = torch.onnx.export(names["Views"]().eval(), inputs, dynamic_shapes=(batch,) * len(inputs))
    assert program is not None
    return program.model_proto, ours


def lines_of(node: onnx.NodeProto, model: onnx.ModelProto) -> list[str]:
    """Return what a box says: operator and name; of a fusion the name first, and the operators in its body."""
    for function in model.functions:
        if (function.domain, function.name) == (node.domain, node.op_type):
            body = ", ".join(inner.op_type for inner in function.node if inner.op_type != "Constant")
            return [node.name, node.op_type, *textwrap.wrap(f"inside: {body}", 44)]
    return [node.op_type, node.name]


def box(identifier: str, lines: list[str], colour: str) -> str:
    """Return a box in Graphviz's language: the first line in bold, the others small."""
    first, *rest = [html.escape(line) for line in lines]
    text = f"<B>{first}</B>" + "".join(f'<BR/><FONT POINT-SIZE="10">{line}</FONT>' for line in rest)
    margin = 0.17 if len(lines) == 2 else 0.25
    return f'"{identifier}" [label=<{text}> fillcolor="{colour}" color="{colour}" margin="{margin},0.05"];'


def cluster(side: str, title: str, model: onnx.ModelProto) -> str:
    """Return one graph in Graphviz's language: a box for each input, node and output, an edge for each value."""
    boxes, edges, sources = [], [], {}
    for info in model.graph.input:
        sources[info.name] = f"{side} input {info.name}"
        boxes.append(f'"{sources[info.name]}" [label="{info.name}" {PORT}];')
    for node in model.graph.node:
        identifier, lines = f"{side} node {node.name}", lines_of(node, model)
        kind = next((colour for colour, operators in KINDS.items() if node.op_type in operators), OTHER)
        boxes.append(box(identifier, lines, FUSION if len(lines) > 2 else kind))
        edges += [f'"{sources[name]}" -> "{identifier}";' for name in node.input if name in sources]
        sources |= dict.fromkeys(node.output, identifier)
    for info in model.graph.output:
        boxes.append(f'"{side} output {info.name}" [label="{info.name}" {PORT}];')
        edges.append(f'"{sources[info.name]}" -> "{side} output {info.name}";')
    title = f"label=<<B>{html.escape(title)}</B>> penwidth=0 fontsize=13"
    return "\n".join([f'subgraph "cluster_{side}" {{ graph [{title}];', *boxes, *edges, "}"])


def main() -> None:
    """Export, draw, and write the picture."""
    plain, ours = models()
    drawing = f"""digraph "The same network, exported twice" {{
        graph [fontname="{FONT}" bgcolor=white ranksep=0.22 nodesep=0.12 pad=0.1 fontcolor="#111827"];
        node [fontname="{FONT}" fontsize=11 fontcolor=white shape=box style="rounded,filled"];
        node [height=0.3];
        edge [color="#6b7280" arrowsize=0.6];
        {cluster("plain", f"torch.onnx.export: {len(plain.graph.node)} nodes", plain)}
        {cluster("ours", f"fusion_onnx.export: {len(ours.graph.node)} nodes", ours)}
    }}"""
    svg = subprocess.run(["dot", "-Tsvg"], input=drawing, capture_output=True, text=True, check=True).stdout
    width, height = map(float, re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
    svg = re.sub(r'width="\S+" height="\S+"', f'width="{WIDTH}" height="{WIDTH * height / width:.0f}"', svg, count=1)
    PICTURE.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
