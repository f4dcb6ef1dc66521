"""Measured side by side: every strategy, in every runtime that a user would otherwise take (`fusion-onnx bench`)."""

from fusion_onnx.bench.contenders import CONTENDERS
from fusion_onnx.bench.report import table, write
from fusion_onnx.bench.rows import SCENARIOS, Row, Scenario, machine, run

__all__ = ["CONTENDERS", "SCENARIOS", "Row", "Scenario", "machine", "run", "table", "write"]
