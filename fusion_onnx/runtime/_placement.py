"""Which provider runs which node, and which fusion the node came from."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ._errors import SessionError

RECORD_KEY = "session.record_ep_graph_assignment_info"
_INLINED = "_inlfunc_"


class NodePlacement(NamedTuple):
    """One node of the graph that ONNX Runtime runs. ``fusion``: the function whose body it stood in, or None."""

    name: str
    op_type: str
    domain: str
    provider: str
    fusion: str | None


def placement(session: Any, functions: Iterable[tuple[str, str]]) -> list[NodePlacement]:
    """Read ONNX Runtime's record of a session made with ``RECORD_KEY`` set; ``functions`` are (domain, name).

    Raises:
        SessionError: this onnxruntime keeps no such record.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        raise SessionError("this onnxruntime does not tell where nodes run; pip install a newer one (1.31 does)")
    known = sorted(functions, key=lambda function: -len(function[1]))
    return [
        NodePlacement(node.name, node.op_type, node.domain, subgraph.ep_name, _fusion_of(node, known))
        for subgraph in ask()
        for node in subgraph.get_nodes()
    ]


def _fusion_of(node: Any, longest_first: list[tuple[str, str]]) -> str | None:
    """A node of an inlined body is named ``_inlfunc_<function>_<node>``; a custom kernel keeps the call's own type."""
    if (node.domain, node.op_type) in longest_first:
        return str(node.op_type)
    for _, name in longest_first:
        # an optimiser may put words in front of the name, so it is looked for, not expected at the start
        if f"{_INLINED}{name}_" in node.name:
            return name
    return None
