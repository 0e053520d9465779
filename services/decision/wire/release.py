"""The catalog's and the releases' requests and answers, as messages."""

import numpy as np
from comity.decision.v1 import decision_service_pb2 as pb

from services.decision.domain.release import Model, NewModel
from services.decision.wire.record import to_timestamp


def announced_from_pb(header: pb.ModelHeader) -> NewModel:
    """The model that the header announces, without its bytes."""
    return NewModel(
        name=header.name,
        sha256=header.sha256,
        feature_set_version=header.feature_set_version,
        columns_count=len(header.columns),
        onnx=b"",
        columns=tuple(header.columns),
        metrics=dict(header.metrics),
        signature=header.signature,
        golden=np.asarray(header.golden_scores, dtype="<f4").tobytes(),
    )


def model_to_pb(model: Model) -> pb.RegisteredModel:
    """A registered model."""
    message = pb.RegisteredModel(
        name=model.name,
        sha256=model.sha256,
        feature_set_version=model.feature_set_version,
        registered_at=to_timestamp(model.registered_at),
        active=model.active,
        metrics=model.metrics,
        erased_subjects_count=model.erased_subjects_count,
        stopped_fitting=model.stopped_fitting,
        stopped_why=model.stopped_why,
    )
    if model.activated_at is not None:
        message.activated_at.CopyFrom(to_timestamp(model.activated_at))
    if model.retrain_since is not None:
        message.retrain_since.CopyFrom(to_timestamp(model.retrain_since))
    return message
