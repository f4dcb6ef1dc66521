"""Proof that an exported model computes what eager execution does."""

from fusion_onnx.verification.eager import verify
from fusion_onnx.verification.locate import Location, locate
from fusion_onnx.verification.verdict import Finding, Verdict

__all__ = ["Finding", "Location", "Verdict", "locate", "verify"]
