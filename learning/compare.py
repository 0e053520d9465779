"""Models beside each other: what each makes of the same decisions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1.decision_service_pb2_grpc import ReleaseServiceStub

from learning.dataset import Examples
from learning.errors import refused_by
from learning.train import GROUPS_MIN, HeldOut, Trained, quality, quality_name
from services.chassis.errors import invalid
from services.chassis.rpc_client import call_again, stream, tried_again
from services.decision.domain.release import MODEL_BYTES_MAX, NewModel, refused
from services.decision.domain.serving import Ranker
from services.decision.ranker import OnnxLoader

LIST_TIMEOUT_S = 10.0
GET_TIMEOUT_S = 60.0
# Among a model's metrics: the newest decision that it was trained on, epoch milliseconds.
TRAINED_UNTIL = "trained_until_ms"


@dataclass(frozen=True, slots=True)
class Compared:
    """The new model beside the one that decides, on held-out decisions that neither had seen.

    Args:
        measure: NDCG@10 or AUC.
        new, active: figures of the two, higher is better; None: too few decisions, or nothing to tell them apart by.
    """

    active_version: str
    measure: str
    decisions: int
    new: float | None = None
    active: float | None = None

    @property
    def is_not_worse(self) -> bool:
        """Whether the new one is known to be as good at least."""
        return self.new is not None and self.active is not None and self.new >= self.active


@dataclass(frozen=True, slots=True)
class Figure:
    """What a model makes of some decisions.

    Args:
        value: higher is better; None where nothing tells.
        seen_count: of the decisions, how many it may have been trained on, where it may be better than it is; None:
            not known.
    """

    model_version: str
    value: float | None
    seen_count: int | None


@dataclass(frozen=True, slots=True)
class Contender:
    """A model that can score.

    Args:
        known_until_ms: it was trained on nothing that was decided later; None: that is not known.
    """

    ranker: Ranker
    known_until_ms: int | None


async def list_models(stub: ReleaseServiceStub) -> list[pb.RegisteredModel]:
    """Every registered model, oldest first."""
    return list((await call_again(stub.ListModels, pb.ListModelsRequest(), LIST_TIMEOUT_S)).models)


async def contender(stub: ReleaseServiceStub, model: pb.RegisteredModel, columns_count: int) -> Contender:
    """A registered model, fetched and loaded as the decision service loads it.

    Raises:
        ServiceError: NOT_FOUND; INVALID (MODEL_REFUSED).
    """
    request = pb.GetModelRequest(name=model.name, sha256=model.sha256)

    async def read() -> bytes:
        return b"".join([part.chunk async for part in stream(stub.GetModel, request, GET_TIMEOUT_S)])

    onnx = await tried_again("decision.GetModel", read)
    ranker = loaded(model.name, model.sha256, model.feature_set_version, columns_count, onnx)
    return Contender(ranker, known_until_ms(model))


def known_until_ms(model: pb.RegisteredModel) -> int:
    """It was trained on nothing that was decided later: as it says itself, else it was registered then."""
    return int(model.metrics.get(TRAINED_UNTIL, model.registered_at.ToMilliseconds()))


def loaded(name: str, sha256: str, feature_set_version: str, columns_count: int, onnx: bytes) -> Ranker:
    """The model, if the decision service would take it: the same checks.

    Raises:
        ServiceError: INVALID (MODEL_REFUSED), saying what is wrong with it; UNAVAILABLE (MODEL_NOT_TRIED).
    """
    if len(onnx) > MODEL_BYTES_MAX:
        raise invalid("model", f"has more than {MODEL_BYTES_MAX:,} bytes; train a smaller one", reason="MODEL_REFUSED")
    model, loader = NewModel(name, sha256, feature_set_version, columns_count, onnx), OnnxLoader()
    model.require_whole()
    if problem := loader.try_out(model):
        raise refused(problem)
    return loader.load(model)


def figures(contenders: Sequence[Contender], examples: Examples) -> list[Figure]:
    """What each model makes of the examples.

    Raises:
        LearningError: a model cannot score them.
    """
    return [Figure(one.ranker.version, _figure(one.ranker, examples), _seen(one, examples)) for one in contenders]


def _seen(one: Contender, examples: Examples) -> int | None:
    return None if one.known_until_ms is None else int((examples.decided_at_ms <= one.known_until_ms).sum())


async def beside_active(
    stub: ReleaseServiceStub, name: str, sha256: str, feature_set: str, columns_count: int, trained: Trained
) -> Compared | None:
    """The new model beside the active one of its name; None where there is none, or it is the same.

    The new one is judged by what it gave when it was stopped early: the model that is registered has seen everything.
    """
    fitting = (m for m in await list_models(stub) if (m.name, m.feature_set_version) == (name, feature_set))
    active = next((m for m in fitting if m.active), None)
    if active is None or active.sha256 == sha256:
        return None
    ranker = (await contender(stub, active, columns_count)).ranker
    if trained.held_out is None:
        return Compared(ranker.version, "", 0)
    return compared(ranker, trained.held_out.after(known_until_ms(active)))


def compared(active: Ranker, unseen: HeldOut) -> Compared:
    """Both figures on what neither has seen, where it is enough to say anything."""
    measure, count = quality_name(unseen.examples), len(unseen.examples.groups)
    if count < GROUPS_MIN:
        return Compared(active.version, measure, count)
    return Compared(
        active.version, measure, count, quality(unseen.examples, unseen.scores), _figure(active, unseen.examples)
    )


def _figure(ranker: Ranker, examples: Examples) -> float | None:
    if not len(examples.groups):
        return None
    with refused_by(f"Model {ranker.version}"):
        return quality(examples, np.asarray(ranker.score(examples.matrix), dtype=np.float64))
