"""Which provider runs which node, and which fusion the node came from."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ._errors import SessionError
from ._probe import CPU, CUDA

RECORD_KEY = "session.record_ep_graph_assignment_info"
_INLINED = "_inlfunc_"
_OF_SHAPES = frozenset(
    ("Add", "Sub", "Mul", "Div", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Expand")
)
"""CUDA has kernels of these for every type, so one that is on the CPU computes a shape: ONNX Runtime keeps what follows
a Shape there, since it launches kernels by these numbers."""


class NodePlacement(NamedTuple):
    """One node of the graph that ONNX Runtime runs. ``fusion``: the function from whose body it comes, or None."""

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
    assignment_info = getattr(session, "get_provider_graph_assignment_info", None)
    if assignment_info is None:
        raise SessionError("this onnxruntime does not tell where nodes run; pip install a newer one (1.31 does)")
    longest_first = sorted(functions, key=lambda function: -len(function[1]))
    return [
        NodePlacement(node.name, node.op_type, node.domain, subgraph.ep_name, _fusion_of(node, longest_first))
        for subgraph in assignment_info()
        for node in subgraph.get_nodes()
    ]


def check_all_on_cuda(session: Any, where: str) -> None:
    """Check that in a session for CUDA alone the CPU has no node but the arithmetic on shapes.

    Raises:
        SessionError: it has one.
    """
    nodes = placement(session, ())
    op_types = sorted({node.op_type for node in nodes if node.provider == CPU and node.op_type not in _OF_SHAPES})
    if op_types:
        raise SessionError(
            f"{where}: {', '.join(op_types)}: no kernel on {CUDA} for such nodes, and the CPU may not take them; "
            f"to allow that, ask for providers={['cuda', 'cpu']}"
        )


def _fusion_of(node: Any, longest_first: list[tuple[str, str]]) -> str | None:
    """Return the function that a node comes from; None for a node of the main graph.

    A node of an inlined body is named ``_inlfunc_<function>_<node>``; a custom kernel has the call's own type.
    """
    if (node.domain, node.op_type) in longest_first:
        return str(node.op_type)
    for _, name in longest_first:
        # not at the start: an optimiser may put words in front of the name
        if f"{_INLINED}{name}_" in node.name:
            return name
    return None
