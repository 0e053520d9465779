"""A decision that looks at model files, and tries none before it decides."""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.errors import ServiceError
from services.chassis.lifecycle import run
from services.decision.domain.release import NewModel
from services.decision.ranker import OnnxLoader
from services.decision.ranker.inspection import inspect


def looked_at(_: OnnxLoader, model: NewModel) -> str:
    """Stands where try_out stands; what is wrong with the file at first sight."""
    try:
        inspect(model.onnx, model.columns_count)
    except ServiceError as error:
        return error.message
    return ""


if __name__ == "__main__":
    with patch.object(OnnxLoader, "try_out", looked_at):
        run("decision", wiring.Settings, wiring.build)
