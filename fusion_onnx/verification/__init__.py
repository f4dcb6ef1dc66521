"""Proof that an exported model computes what eager execution does."""

from fusion_onnx.verification.locate import Location, locate
from fusion_onnx.verification.verdict import Finding, Verdict
from fusion_onnx.verification.verify import verify

__all__ = ["Finding", "Location", "Verdict", "locate", "verify"]
