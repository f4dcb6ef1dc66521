"""`locate`: where a model starts to differ from its eager module, and what is at fault there.

The module's fusions are taken in the graph's order. For each, in this order: its weights and what arrives at it
(inputs.py), its body by itself (onnx.reference on eager's inputs), ONNX Runtime on the same body, and the providers
that were asked for (isolated.py). What passes all of that is right, so the first that does not is where the difference
starts. After them come the outputs (outputs.py); operators.py says which operator outside the fusions is wrong.
"""

from fusion_onnx.verification.locate.location import Location
from fusion_onnx.verification.locate.search import locate

__all__ = ["Location", "locate"]
