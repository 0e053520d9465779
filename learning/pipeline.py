"""The whole loop: what was decided and answered becomes the model that decides next."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import grpc
from comity.decision.v1.decision_service_pb2_grpc import ReleaseServiceStub
from comity.features.v1.features_service_pb2 import DescribeFeatureSetRequest
from comity.features.v1.features_service_pb2_grpc import FeatureServiceStub
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub

from learning.compare import TRAINED_UNTIL, Compared, beside_active
from learning.dataset import Counts, Examples, replay_examples
from learning.export import Exported, export
from learning.register import Sign, activate, register
from learning.train import Trained, TrainPlan, fit
from services.chassis.rpc_client import call_again

DESCRIBE_TIMEOUT_S = 10.0

# Told the step, how much of it is done and how much there is; 0 where that is not known.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Services:
    """Where the loop reads and writes, and how it signs what it makes."""

    feedback: FeedbackServiceStub
    features: FeatureServiceStub
    release: ReleaseServiceStub
    sign: Sign

    @classmethod
    def over(
        cls, feedback: grpc.aio.Channel, features: grpc.aio.Channel, decision: grpc.aio.Channel, sign: Sign
    ) -> "Services":
        """Stubs over these channels."""
        return cls(FeedbackServiceStub(feedback), FeatureServiceStub(features), ReleaseServiceStub(decision), sign)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to learn.

    Args:
        name: of the model, as the site's policies name it.
        since, until: half-open range of the decisions to learn from; their outcomes count whenever they came.
        purpose: what people must allow for their decisions to be learned from; empty: nothing is asked.
        activate: make it the model that decides; None: if it is not worse than the one that decides now.
    """

    name: str
    since: datetime | None = None
    until: datetime | None = None
    placement_id: str = ""
    purpose: str = ""
    plan: TrainPlan = field(default_factory=TrainPlan)
    activate: bool | None = True


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was learned, from what, and how good it is.

    Args:
        held_out_ndcg10: on the newest decisions, of a model that had not seen them; None: too few to measure.
        held_out_auc: that instead, where every slate holds one item.
        compared: beside the model that decided until then, where there was another and nothing said what to activate.
        parity_difference_max: largest difference between the trainer's scores and the registered model's.
    """

    name: str
    sha256: str
    model_version: str
    active: bool
    feature_set_version: str
    columns_count: int
    rows_count: int
    rounds: int
    held_out_ndcg10: float | None
    held_out_auc: float | None
    parity_difference_max: float
    model_bytes: int
    counts: Counts
    compared: Compared | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return asdict(self)


async def train(services: Services, request: TrainRequest, *, progress: Progress = lambda *_: None) -> TrainReport:
    """Replay, fit, export, check, register, and activate as asked for.

    Raises:
        LearningError: there is nothing to learn from, or the exported model is not the fitted one.
        ServiceError: a service refused or did not answer.
    """
    described = await call_again(services.features.DescribeFeatureSet, DescribeFeatureSetRequest(), DESCRIBE_TIMEOUT_S)
    feature_set = described.feature_set
    examples = await replay_examples(
        services.feedback,
        columns=tuple(column.name for column in feature_set.columns),
        feature_set=feature_set.version,
        since=request.since,
        until=request.until,
        placement_id=request.placement_id,
        purpose=request.purpose,
        progress=lambda count: progress("replay", count, 0),
    )
    # Fitting keeps the cores busy for seconds; the loop must go on answering.
    trained = await asyncio.to_thread(
        fit, examples, request.plan, progress=lambda done, most: progress("fit", done, most)
    )
    progress("export", 0, 0)
    exported = await asyncio.to_thread(export, trained.booster, examples.matrix)
    progress("register", 0, 0)
    version = await register(
        services.release,
        exported,
        name=request.name,
        feature_set=feature_set.version,
        columns=examples.columns,
        metrics=metrics_of(examples, trained, exported),
        sign=services.sign,
        member_ids=examples.member_ids,
    )
    compared, is_active = None, request.activate
    if is_active is None:
        progress("compare", 0, 0)
        compared = await beside_active(
            services.release, request.name, exported.sha256, feature_set.version, len(examples.columns), trained
        )
        is_active = compared is None or compared.is_not_worse
    if is_active:
        await activate(services.release, name=request.name, sha256=exported.sha256)
    return TrainReport(
        name=request.name,
        sha256=exported.sha256,
        model_version=version,
        active=is_active,
        feature_set_version=feature_set.version,
        columns_count=len(examples.columns),
        rows_count=examples.rows_count,
        rounds=trained.rounds,
        held_out_ndcg10=None if examples.is_pointwise else trained.figure,
        held_out_auc=trained.figure if examples.is_pointwise else None,
        parity_difference_max=exported.difference_max,
        model_bytes=len(exported.model),
        counts=examples.counts,
        compared=compared,
    )


def metrics_of(examples: Examples, trained: Trained, exported: Exported) -> Mapping[str, float]:
    """What is kept with the model about how it came to be: numbers only."""
    metrics = {
        "decisions": float(len(examples.groups)),
        "rows": float(examples.rows_count),
        "rounds": float(trained.rounds),
        "parity_difference_max": exported.difference_max,
        TRAINED_UNTIL: float(examples.decided_at_ms.max()),
    }
    if trained.figure is not None:
        metrics["held_out_auc" if examples.is_pointwise else "held_out_ndcg10"] = trained.figure
    return metrics
