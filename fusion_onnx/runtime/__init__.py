"""Run a model in ONNX Runtime: what the caller asks for is what runs, or an error says why.

This package stands alone: it uses numpy and onnxruntime, no torch, no onnx. The first session imports onnxruntime. A
process that starts for one result shall reach it soon, so records are NamedTuples (a dataclass takes half a millisecond
to define), and functions import what serves messages or rare requests.
"""

from typing import TYPE_CHECKING

from ._bound import Bound
from ._errors import InputError, SessionError
from ._model_file import ModelHeader, read_header
from ._openvino import EXACT as OPENVINO_EXACT
from ._placement import NodePlacement
from ._probe import ProviderStatus, alias_of, available_providers, diagnose
from ._providers import Providers, auto_providers
from ._session import Session
from ._types import TensorInfo
from .fused import why_not_fused

if TYPE_CHECKING:
    from ._model_like import ModelLike as ModelLike

__all__ = [
    "OPENVINO_EXACT",
    "Bound",
    "InputError",
    "ModelHeader",
    "NodePlacement",
    "ProviderStatus",
    "Providers",
    "Session",
    "SessionError",
    "TensorInfo",
    "alias_of",
    "auto_providers",
    "available_providers",
    "diagnose",
    "read_header",
    "why_not_fused",
]
