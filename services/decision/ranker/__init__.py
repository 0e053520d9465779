"""Rankers: ONNX models that were tried in a process of their own, run by ONNX Runtime on one thread."""

from services.decision.domain.release import NewModel
from services.decision.ranker.session import OnnxRanker, load
from services.decision.ranker.trial import CHECKER, try_out

__all__ = ["OnnxLoader", "OnnxRanker"]


class OnnxLoader:
    """handlers.ports.ModelLoader."""

    checker = CHECKER

    def try_out(self, model: NewModel) -> str:
        """See handlers.ports.ModelLoader."""
        return try_out(model)

    def load(self, model: NewModel) -> OnnxRanker:
        """See handlers.ports.ModelLoader."""
        return load(model)
