"""A platform that stands in: the five services' methods that learning calls, over gRPC, with a feature that can leak.

Its only feature is an item's clicks so far. It refuses to record a ranking while something tracked earlier has not
been waited for, so a run that does not keep the protocol fails here.
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from comity.common.v1.types_pb2 import LogPosition
from comity.consent.v1 import consent_service_pb2 as consent_pb2
from comity.decision.v1 import decision_events_pb2
from comity.decision.v1 import decision_service_pb2 as decision_pb2
from comity.features.v1 import features_service_pb2 as features_pb2
from comity.feedback.v1 import feedback_events_pb2
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb2

from learning.export import score, session_of
from services.chassis.errors import Kind, ServiceError

FEATURE_SET = "features-1"


class Platform:
    """Every method of every service it stands in for; one object, so that a test sees everything."""

    def __init__(self) -> None:
        self.granted: dict[str, int] = {}
        self.items: set[str] = set()
        self.clicks: Counter[str] = Counter()
        self.tracked: list[feedback_pb2.TrackedEvent] = []
        self.decisions: dict[str, decision_events_pb2.DecisionMade] = {}
        self.headers: list[decision_pb2.ModelHeader] = []
        self.model: bytes = b""
        self.active = ""
        self.models: dict[str, tuple[decision_pb2.ModelHeader, bytes]] = {}
        self.refuse_track = False
        self.fails: Callable[[str], bool] = lambda _: False
        self._known: set[str] = set()
        self._log = 0
        self._columns_at = 0
        self._subjects_at = 0

    # --- consent ---

    async def Record(self, request: consent_pb2.RecordRequest, context: Any) -> consent_pb2.RecordResponse:  # noqa: N802
        """Count what was granted."""
        self.granted[request.subject.identities[0].value] = len(request.answers)
        return consent_pb2.RecordResponse()

    # --- catalog ---

    async def UpsertItems(  # noqa: N802
        self, request: decision_pb2.UpsertItemsRequest, context: Any
    ) -> decision_pb2.UpsertItemsResponse:
        """Know the items."""
        self.items.update(item.id for item in request.items)
        self._may_fail("UpsertItems")
        self._log += 1
        return decision_pb2.UpsertItemsResponse(position=LogPosition(epoch=1, xid=self._log, position=self._log))

    async def AwaitItemColumns(  # noqa: N802
        self, request: decision_pb2.AwaitItemColumnsRequest, context: Any
    ) -> decision_pb2.AwaitItemColumnsResponse:
        """Note what was waited for."""
        self._columns_at = max(self._columns_at, request.behavior_position.position, request.catalog_position.position)
        return decision_pb2.AwaitItemColumnsResponse()

    # --- features ---

    async def AwaitPosition(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Note what was waited for; feedback's method of this name comes here too."""
        if isinstance(request, feedback_pb2.AwaitPositionRequest):
            return feedback_pb2.AwaitPositionResponse()
        self._subjects_at = max(self._subjects_at, request.position.position)
        return features_pb2.AwaitPositionResponse()

    async def DescribeFeatureSet(  # noqa: N802
        self, request: features_pb2.DescribeFeatureSetRequest, context: Any
    ) -> features_pb2.DescribeFeatureSetResponse:
        """One column."""
        response = features_pb2.DescribeFeatureSetResponse()
        response.feature_set.version = FEATURE_SET
        response.feature_set.columns.add(name="clicks")
        return response

    # --- decision ---

    async def RecordDecisions(  # noqa: N802
        self, request: decision_pb2.RecordDecisionsRequest, context: Any
    ) -> decision_pb2.RecordDecisionsResponse:
        """Record with the features of now, or find what is there; score with the active model."""
        response = decision_pb2.RecordDecisionsResponse()
        for ranking in request.decisions:
            moment = ranking.decided_at.ToMilliseconds()
            assert self.items.issuperset(ranking.item_ids), "an unknown item was shown"
            decision_id = hashlib.sha256(ranking.external_id.encode()).hexdigest()[:32]
            if decision_id not in self.decisions:
                assert min(self._columns_at, self._subjects_at) >= self._log, "recorded too early"
                late = [event for event in self.tracked if event.occurred_at.ToMilliseconds() >= moment]
                assert not late, "an event that is not strictly earlier was visible"
                self.decisions[decision_id] = self._made(decision_id, ranking)
            made = self.decisions[decision_id]
            result = response.results.add(external_id=ranking.external_id, decision_id=decision_id)
            if self.active:
                matrix = np.frombuffer(made.inputs.matrix, dtype="<f4").reshape(-1, 1)
                result.scores.extend(score(session_of(self.model), matrix).tolist())
        response.position.CopyFrom(LogPosition(epoch=1, xid=1, position=len(self.decisions)))
        self._may_fail("RecordDecisions")
        return response

    def _may_fail(self, method: str) -> None:
        """As a busy machine does: it was done, and the answer does not come in time."""
        if self.fails(method):
            raise ServiceError(Kind.DEADLINE, "SLOW", "it took too long; try again")

    def _made(self, decision_id: str, ranking: decision_pb2.RecordedDecision) -> decision_events_pb2.DecisionMade:
        made = decision_events_pb2.DecisionMade(
            decision_id=decision_id, placement_id=ranking.placement_id, origin=decision_events_pb2.ORIGIN_RECORDED
        )
        made.decided_at.CopyFrom(ranking.decided_at)
        made.versions.feature_set = FEATURE_SET
        made.inputs.item_ids.extend(ranking.item_ids)
        made.inputs.columns_count = 1
        made.inputs.matrix = np.array([self.clicks[item] for item in ranking.item_ids], dtype="<f4").tobytes()
        for slot, item_id in enumerate(ranking.item_ids):
            made.slate.add(slot=slot, item_id=item_id)
        return made

    async def RegisterModel(  # noqa: N802
        self, requests: AsyncIterator[decision_pb2.RegisterModelRequest], context: Any
    ) -> decision_pb2.RegisterModelResponse:
        """Put the model together."""
        parts = [request async for request in requests]
        self.headers.append(parts[0].header)
        self.model = b"".join(part.chunk for part in parts[1:])
        self.models[parts[0].header.sha256] = (parts[0].header, self.model)
        return decision_pb2.RegisterModelResponse(model_version=f"{parts[0].header.name}@{parts[0].header.sha256}")

    async def ListModels(self, request: Any, context: Any) -> decision_pb2.ListModelsResponse:  # noqa: N802
        """What was registered."""
        response = decision_pb2.ListModelsResponse()
        for sha256, (header, _) in self.models.items():
            response.models.add(
                name=header.name,
                sha256=sha256,
                feature_set_version=header.feature_set_version,
                active=sha256 == self.active,
                metrics=dict(header.metrics),
            )
        return response

    async def GetModel(  # noqa: N802
        self, request: decision_pb2.GetModelRequest, context: Any
    ) -> AsyncIterator[decision_pb2.GetModelResponse]:
        """In two parts."""
        onnx = self.models[request.sha256][1]
        for part in (onnx[:100], onnx[100:]):
            yield decision_pb2.GetModelResponse(chunk=part)

    async def ListItems(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Not called: it stands here because it streams."""
        raise AssertionError("learning does not call ListItems")
        yield

    async def ActivateModel(  # noqa: N802
        self, request: decision_pb2.ActivateModelRequest, context: Any
    ) -> decision_pb2.ActivateModelResponse:
        """Let it score."""
        self.active = request.sha256
        return decision_pb2.ActivateModelResponse(model_version=f"{request.name}@{request.sha256}")

    # --- feedback ---

    async def Track(self, request: feedback_pb2.TrackRequest, context: Any) -> feedback_pb2.TrackResponse:  # noqa: N802
        """Count the clicks."""
        self._may_fail("Track")
        response = feedback_pb2.TrackResponse()
        for event in request.events:
            if event.event_id in self._known:
                response.results.add(event_id=event.event_id, status=feedback_pb2.TRACK_STATUS_DUPLICATE)
                continue
            self._known.add(event.event_id)
            self.tracked.append(event)
            if event.type == "click":
                self.clicks.update(event.item_ids)
            refused = self.refuse_track
            response.results.add(
                event_id=event.event_id,
                status=feedback_pb2.TRACK_STATUS_DROPPED_NO_CONSENT if refused else feedback_pb2.TRACK_STATUS_ACCEPTED,
            )
        self._log += 1
        response.position.CopyFrom(LogPosition(epoch=1, xid=self._log, position=self._log))
        return response

    async def ReplayEvents(  # noqa: N802
        self, request: feedback_pb2.ReplayEventsRequest, context: Any
    ) -> AsyncIterator[feedback_pb2.ReplayEventsResponse]:
        """Decisions before the end, and every click that names one."""
        response = feedback_pb2.ReplayEventsResponse()
        if request.kinds[0] == feedback_pb2.REPLAY_KIND_DECISION:
            for made in self.decisions.values():
                if not request.HasField("until") or made.decided_at.ToNanoseconds() < request.until.ToNanoseconds():
                    response.events.add(decision=made)
        else:
            for event in self.tracked:
                if event.type == "click" and event.decision_id:
                    outcome = feedback_events_pb2.OutcomeAttributed(
                        decision_id=event.decision_id, item_id=event.item_ids[0], reward=1.0
                    )
                    response.events.add(outcome=outcome)
        yield response

    async def GetItemColumns(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Not called: it stands here because it streams."""
        raise AssertionError("learning does not call GetItemColumns")
        yield

    def __getattr__(self, name: str) -> Any:
        """Methods that learning does not call exist, because the generated registrars ask for them."""
        if name.startswith("_"):
            raise AttributeError(name)

        async def not_called(request: Any, context: Any) -> Any:
            raise AssertionError(f"learning does not call {name}")

        return not_called
