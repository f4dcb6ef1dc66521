"""`Subject`: what is compared with a model, a module and its arguments, made once and handed on."""

from typing import NamedTuple

from torch import Tensor

from fusion_onnx.contract import Fusion, FusionLayer
from fusion_onnx.contract.layer import bare_fusion
from fusion_onnx.verification.arguments import Arguments, positional
from fusion_onnx.verification.eval_mode import EvalMode


class FusionCall(NamedTuple):
    """A call of a fusion: k tensors (..., n_i), checked, and its parameters w; None where it has none."""

    fusion: Fusion
    xs: list[Tensor]
    w: Tensor | None


class Subject:
    """A module, as a function that leaves no trace in it, and the arguments that it was given.

    call: the call of the fusion, where the module is one, or a layer of one, and nothing else; None for a network.
    """

    def __init__(self, run: EvalMode, arguments: Arguments) -> None:
        self.run, self.module, self.arguments = run, run.module, arguments
        self._fusion = bare_fusion(run.module)
        self.call = self.call_with(arguments)

    def outputs(self, arguments: Arguments) -> list[Tensor]:
        """Run the module, and return the tensors it gives."""
        return self.run.outputs(arguments.args)

    def call_with(self, arguments: Arguments) -> FusionCall | None:
        """Return the fusion's call with other arguments; None for a network. Raises FusionError for wrong inputs."""
        if self._fusion is None or not arguments.args:
            return None
        first, *others = positional(self.module, arguments.args)
        if isinstance(self.module, FusionLayer):
            xs = first if not others and isinstance(first, (list, tuple)) else (first, *others)
            return FusionCall(self._fusion, self._fusion.check_inputs(list(xs)), self.module.w)
        return FusionCall(self._fusion, self._fusion.check_inputs(list(first)), others[0] if others else None)
