"""From PyTorch to ONNX: every fusion one named node, with its decomposition attached as a function."""

from fusion_exporters import targets
from fusion_exporters.errors import ExportError, VerificationError
from fusion_exporters.exporter import ExportResult, export
from fusion_exporters.forms.tuning_file import Timing, Tuning
from fusion_exporters.pipelines import attach, translations
from fusion_exporters.tuning import tune

__all__ = [
    "ExportError",
    "ExportResult",
    "Timing",
    "Tuning",
    "VerificationError",
    "attach",
    "export",
    "targets",
    "translations",
    "tune",
]
