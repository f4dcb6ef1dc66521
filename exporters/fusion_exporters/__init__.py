"""From PyTorch to ONNX: every fusion one named node, with its decomposition attached as a function."""

from fusion_exporters.exporter import ExportResult, export
from fusion_exporters.inputs import ExportError, VerificationError
from fusion_exporters.pipelines import attach, translations
from fusion_exporters.tuning import Tuning, tune

__all__ = ["ExportError", "ExportResult", "Tuning", "VerificationError", "attach", "export", "translations", "tune"]
