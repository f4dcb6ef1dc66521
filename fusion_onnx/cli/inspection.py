"""What is in a model file: inputs, outputs, the fusions with their configs and bodies, opset, size."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_onnx.file_format import ALGEBRA, DOMAIN, FUSIONS, VERIFICATION, VERSION, facts_in

if TYPE_CHECKING:
    from fusion_onnx.runtime import ModelHeader


@dataclass(frozen=True)
class FusionNode:
    """A fusion in a model: the node's name, its function, its config, and the function's body as ONNX text.

    cost: the form it is written in, and what that costs: operations, bytes read and written, operators, and weights
    held; `sizes` of the dynamic axes that this holds for; `others`, the forms that were not taken. Empty if not told.
    """

    name: str
    function: str
    config: dict[str, Any]
    body: str
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """A model file, described: `fusions` holds the nodes; `configs` the metadata's config of each fusion, by path."""

    header: "ModelHeader"
    fusions: list[FusionNode] = field(default_factory=list)
    configs: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] | None = None

    @property
    def algebra(self) -> str | None:
        """Why `optimize="algebra"` left something as it was; None where it was not asked for, or did all there was."""
        return self.header.metadata.get(ALGEBRA)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain data."""
        header = self.header
        return {
            "path": header.path,
            "bytes": header.size,
            "ir_version": header.ir_version,
            "opsets": header.opset_imports,
            "producer": header.producer,
            "version": header.metadata.get(VERSION),
            "inputs": [info._asdict() for info in header.inputs],
            "outputs": [info._asdict() for info in header.outputs],
            "operators": {f"{domain}::{op}" if domain else op: n for (domain, op), n in sorted(header.ops.items())},
            "fusions": [asdict(node) for node in self.fusions],
            "configs": self.configs,
            "verification": self.verification,
            "algebra": self.algebra,
        }


def inspect_model(path: str | os.PathLike[str]) -> Inspection:
    """Describe a model file; the bodies need onnx (`pip install 'fusion-onnx[export]'`), the rest nothing.

    Raises SessionError where the file is not an ONNX model, FileNotFoundError where there is none.
    """
    from fusion_onnx.runtime import read_header

    header = read_header(path)
    configs = _json(header.metadata.get(FUSIONS)) or {}
    verification = _json(header.metadata.get(VERIFICATION))
    return Inspection(header, _nodes(path, facts_in(header.metadata)), configs, verification)


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError:
        return None


def _nodes(path: str | os.PathLike[str], costs: dict[str, Any]) -> list[FusionNode]:
    try:
        import onnx
        import onnx.printer
    except ImportError:
        return []
    model = onnx.load_model_from_string(Path(path).read_bytes())
    bodies = {function.name: function for function in model.functions if function.domain == DOMAIN}
    nodes = []
    for node in model.graph.node:
        if node.domain == DOMAIN:
            config = next((_json(a.s.decode()) for a in node.attribute if a.name == "config"), None) or {}
            body = onnx.printer.to_text(bodies[node.op_type]) if node.op_type in bodies else ""
            nodes.append(FusionNode(node.name, node.op_type, config, body, costs.get(node.name, {})))
    return nodes
