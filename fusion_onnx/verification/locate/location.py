"""`Location`: where a model starts to differ from its module."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Location:
    """Where a model starts to differ.

    node: the ONNX node's name, "pick", or "pick/min_2" inside a body. fusion: the fusion's path in the module, the
    strategy's name for a bare one, empty for an ordinary operator. strategy: its name in the registry. fault: one of

    - weights    the file holds other parameters or buffers than the module;
    - wiring     something else arrives at the fusion than in eager;
    - body       the function attached to it computes something else;
    - runtime    ONNX Runtime computes the body differently from the ONNX standard;
    - device     the providers asked for differ from the CPU;
    - operator   an operator outside the fusions differs;
    - interface  the file's inputs or outputs are not the module's.

    case: at which sizes or values. detail: one sentence with the numbers.
    """

    node: str
    fusion: str
    strategy: str
    fault: str
    case: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        owner = f" of the fusion {self.fusion!r} ({self.strategy})" if self.fusion else ""
        return f"{self.fault} at node {self.node!r}{owner}, {self.case}: {self.detail}"
