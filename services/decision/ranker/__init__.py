"""Rankers: ONNX models that were checked, run by ONNX Runtime on one thread."""

from services.decision.ranker.session import OnnxLoader, OnnxRanker

__all__ = ["OnnxLoader", "OnnxRanker"]
