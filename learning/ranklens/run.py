"""The RankLens protocol, run against the five services.

At each point in time: rankings are recorded first, with the features that all strictly earlier events made; only
then are its exposures and clicks tracked. The next ranking waits until those are visible, on log positions.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import grpc
from comity.common.v1.types_pb2 import Identity, LogPosition, SubjectRef
from comity.consent.v1 import consent_service_pb2 as consent_pb2
from comity.consent.v1.consent_service_pb2_grpc import ConsentServiceStub
from comity.decision.v1 import decision_events_pb2, decision_service_pb2
from comity.decision.v1.decision_service_pb2_grpc import CatalogServiceStub, DecisionServiceStub
from comity.decision.v1.site_pb2 import Item
from comity.features.v1 import features_service_pb2
from comity.features.v1.features_service_pb2_grpc import FeatureServiceStub
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb2
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from learning.errors import LearningError
from learning.evaluate import MeanNdcg
from learning.pipeline import Services, TrainReport, TrainRequest, train
from learning.ranklens.baselines import baselines
from learning.ranklens.events import Moment, Ranking, RankLensEvents
from learning.register import Sign
from learning.train import TrainPlan
from services.chassis.envelope import from_position
from services.chassis.rpc_client import call_again
from services.chassis.words import enum_word

CALL_TIMEOUT_S = 30.0
DECISIONS_MAX = 256
ITEMS_MAX = 250
EVENTS_MAX = 1000
# Consent is recorded a person at a time; so many at once.
CONSENTS_IN_FLIGHT = 32
# As examples/ranklens/notices.yaml declares it.
NOTICE_VERSION, NOTICE_LANGUAGE = "study", "en"
# A replica takes a moment to load what was activated.
ACTIVE_WAIT_S = 30.0
ACTIVE_POLL_S = 0.1

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RankLensSite:
    """What of the applied bundle the run needs.

    Args:
        purposes: everything that people are asked for; they grant all of it.
    """

    placement_id: str
    model: str
    purposes: tuple[str, ...]
    exposure_type: str = "exposure"
    click_type: str = "click"


@dataclass(frozen=True, slots=True)
class RankLensRequest:
    """Which rankings are learned from and which are judged, by their time in milliseconds."""

    train_before_ms: int
    score_from_ms: int
    score_before_ms: int | None = None
    plan: TrainPlan = field(default_factory=TrainPlan)
    purpose: str = ""

    def is_scored(self, ranking: Ranking) -> bool:
        """Whether the ranking lies in the range that is judged."""
        return self.score_from_ms <= ranking.at_ms and (
            self.score_before_ms is None or ranking.at_ms < self.score_before_ms
        )


@dataclass(frozen=True, slots=True)
class RankLensReport:
    """How well the platform ranked, and the simple rankers beside it."""

    ndcg: Mapping[str, float]
    rankings: int
    baselines: Mapping[str, Mapping[str, float]]
    training: TrainReport

    def as_dict(self) -> dict[str, Any]:
        """What `comity eval ranklens --json` prints."""
        return {**self.ndcg, "rankings": self.rankings, "baselines": {k: dict(v) for k, v in self.baselines.items()}}


class RankLens:
    """One run over services that hold an applied bundle and nothing else. Use `await RankLens(…).run()`."""

    def __init__(
        self,
        channels: Mapping[str, grpc.aio.Channel],
        site: RankLensSite,
        events: RankLensEvents,
        request: RankLensRequest,
        *,
        sign: Sign,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._consent = ConsentServiceStub(channels["consent"])
        self._decision = DecisionServiceStub(channels["decision"])
        self._catalog = CatalogServiceStub(channels["decision"])
        self._features = FeatureServiceStub(channels["features"])
        self._feedback = FeedbackServiceStub(channels["feedback"])
        self._learning = Services.over(channels["feedback"], channels["features"], channels["decision"], sign)
        self._site = site
        self._events = events
        self._request = request
        self._progress = progress
        self._behavior_at = LogPosition()
        self._catalog_at = LogPosition()
        self._decisions_at = LogPosition()
        self._visible: dict[str, LogPosition] = {}
        self._decision_ids: dict[str, str] = {}
        self._known_items: set[str] = set()
        self._training: TrainReport | None = None
        self._unscored: list[Ranking] = []
        self._judged = MeanNdcg()

    async def run(self) -> RankLensReport:
        """Replay the data's time from its beginning, train at the boundary, score what comes after.

        Raises:
            LearningError: something was refused, so the figures would not be those of the protocol.
            ServiceError: a service did not answer.
        """
        await self._grant_consent()
        done, total = 0, len(self._events)
        learned_by = self._events.answered_by(self._request.train_before_ms)
        for moment in self._events.moments():
            if self._training is None and moment.at_ms > learned_by and moment.at_ms >= self._request.train_before_ms:
                await self._train()
            await self._take(moment)
            done += len(moment.films) + len(moment.rankings) + len(moment.clicks)
            self._progress("replay", done, total)
        if self._training is None:
            await self._train()
        assert self._training is not None, "trained above"
        return RankLensReport(
            ndcg=self._judged.report(),
            rankings=self._judged.rankings_count,
            baselines=baselines(self._events, self._request.is_scored),
            training=self._training,
        )

    async def _grant_consent(self) -> None:
        granted = [
            consent_pb2.PurposeAnswer(purpose=purpose, state=consent_pb2.CONSENT_STATE_GRANTED)
            for purpose in self._site.purposes
        ]
        done = 0
        under_way = asyncio.Semaphore(CONSENTS_IN_FLIGHT)

        async def grant(user: str) -> None:
            nonlocal done
            request = consent_pb2.RecordRequest(
                request_id=f"ranklens-{user}"[:64],
                subject=_subject(user),
                answers=granted,
                mechanism="import",
                notice_version=NOTICE_VERSION,
                notice_language=NOTICE_LANGUAGE,
            )
            async with under_way:
                await call_again(self._consent.Record, request, CALL_TIMEOUT_S)
            done += 1
            self._progress("consent", done, len(self._events.users))

        await _all_of(grant(user) for user in self._events.users)

    async def _take(self, moment: Moment) -> None:
        if moment.rankings:
            await self._upsert(
                Item(id=item_id)
                for item_id in dict.fromkeys(item_id for ranking in moment.rankings for item_id in ranking.item_ids)
                if item_id not in self._known_items
            )
            await self._await_visible()
            decision_ids = await self._record(moment.rankings)
        else:
            decision_ids = []
        await self._upsert(film.item for film in moment.films)
        await self._track(moment, decision_ids)

    async def _upsert(self, items: Iterable[Item]) -> None:
        for chunk in _chunks(items, ITEMS_MAX):
            response = await call_again(
                self._catalog.UpsertItems, decision_service_pb2.UpsertItemsRequest(items=chunk), CALL_TIMEOUT_S
            )
            self._catalog_at = response.position
            self._known_items.update(item.id for item in chunk)

    async def _await_visible(self) -> None:
        """Returns when everything tracked and upserted so far is in what a ranking would be scored with."""
        positions = {"decision": self._catalog_at, "feedback": self._behavior_at}
        waiting = {name: at for name, at in positions.items() if at.position and at != self._visible.get(name)}
        if not waiting:
            return
        for source, position in waiting.items():
            request = features_service_pb2.AwaitPositionRequest(source=source, position=position)
            await call_again(self._features.AwaitPosition, request, CALL_TIMEOUT_S)
        columns = decision_service_pb2.AwaitItemColumnsRequest(
            behavior_position=self._behavior_at, catalog_position=self._catalog_at
        )
        await call_again(self._catalog.AwaitItemColumns, columns, CALL_TIMEOUT_S)
        self._visible.update(waiting)

    async def _record(self, rankings: Sequence[Ranking]) -> list[str]:
        """Record rankings as decisions; judge those that are to be, as soon as there is a model."""
        decision_ids: list[str] = []
        for chunk in _chunks(rankings, DECISIONS_MAX):
            response = await self._record_decisions(chunk)
            # A try that was not answered may have recorded them, and then they are behind what the next one found.
            self._decisions_at = max(self._decisions_at, response.position, key=from_position)
            decision_ids.extend(result.decision_id for result in response.results)
            judged = [
                (ranking, result)
                for ranking, result in zip(chunk, response.results, strict=True)
                if self._request.is_scored(ranking) and self._events.liked_in(ranking)
            ]
            if self._training is None:
                self._unscored.extend(ranking for ranking, _ in judged)
            else:
                for ranking, result in judged:
                    self._judge(ranking, result)
        return decision_ids

    async def _record_decisions(self, rankings: Sequence[Ranking]) -> decision_service_pb2.RecordDecisionsResponse:
        request = decision_service_pb2.RecordDecisionsRequest(
            decisions=[
                decision_service_pb2.RecordedDecision(
                    external_id=ranking.ranking_id,
                    subject=_subject(ranking.user),
                    placement_id=self._site.placement_id,
                    item_ids=ranking.item_ids,
                    decided_at=_time(ranking.at_ms),
                )
                for ranking in rankings
            ]
        )
        return await call_again(self._decision.RecordDecisions, request, CALL_TIMEOUT_S)

    def _judge(self, ranking: Ranking, result: decision_service_pb2.RecordedResult) -> None:
        if len(result.scores) != len(ranking.item_ids):
            reason = result.refused or enum_word(decision_events_pb2.FallbackReason.DESCRIPTOR, result.fallback_reason)
            raise LearningError(f"A ranking was not scored ({reason}): it cannot be left out, so there is no result.")
        self._judged.add(ranking.item_ids, self._events.liked_in(ranking), list(result.scores))

    async def _track(self, moment: Moment, decision_ids: Sequence[str]) -> None:
        decision_of = dict(zip((ranking.ranking_id for ranking in moment.rankings), decision_ids, strict=True))
        self._decision_ids.update(decision_of)
        occurred_at = _time(moment.at_ms)
        events = [
            feedback_pb2.TrackedEvent(
                event_id=ranking.ranking_id,
                type=self._site.exposure_type,
                subject=_subject(ranking.user),
                occurred_at=occurred_at,
                item_ids=ranking.item_ids,
                decision_id=decision_of[ranking.ranking_id],
            )
            for ranking in moment.rankings
        ]
        events += [
            feedback_pb2.TrackedEvent(
                event_id=click.click_id,
                type=self._site.click_type,
                subject=_subject(click.user),
                occurred_at=occurred_at,
                item_ids=[click.item_id],
                decision_id=self._decision_ids.get(click.ranking_id, ""),
            )
            for click in moment.clicks
        ]
        for chunk in _chunks(events, EVENTS_MAX):
            response = await call_again(self._feedback.Track, feedback_pb2.TrackRequest(events=chunk), CALL_TIMEOUT_S)
            _require_taken(response)
            self._behavior_at = max(self._behavior_at, response.position, key=from_position)

    async def _train(self) -> None:
        """Train on what is before the boundary, through the same pipeline as `comity train`."""
        request = feedback_pb2.AwaitPositionRequest(source="decision", position=self._decisions_at)
        await call_again(self._feedback.AwaitPosition, request, CALL_TIMEOUT_S)
        self._training = await train(
            self._learning,
            TrainRequest(
                name=self._site.model,
                until=datetime.fromtimestamp(self._request.train_before_ms / 1000, UTC),
                placement_id=self._site.placement_id,
                purpose=self._request.purpose,
                plan=self._request.plan,
            ),
            progress=self._progress,
        )
        await self._await_scoring()
        for chunk in _chunks(self._unscored, DECISIONS_MAX):
            # Recorded before there was a model: scored now, by the features that were recorded then.
            response = await self._record_decisions(chunk)
            for ranking, result in zip(chunk, response.results, strict=True):
                self._judge(ranking, result)
        self._unscored.clear()

    async def _await_scoring(self) -> None:
        """Returns when the decision service scores with the model."""
        known = self._events.rankings[:1]
        loop = asyncio.get_running_loop()
        until = loop.time() + ACTIVE_WAIT_S
        while known and not (await self._record_decisions(known)).results[0].scores:
            if loop.time() > until:
                raise LearningError("The model was activated and the decision service does not score with it.")
            await asyncio.sleep(ACTIVE_POLL_S)


def _subject(user: str) -> SubjectRef:
    return SubjectRef(identities=[Identity(namespace="user_id", value=user)])


def _time(at_ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(at_ms)
    return stamp


def _require_taken(response: feedback_pb2.TrackResponse) -> None:
    """Returns when every event is in the log; a missing one would change every figure after it.

    Raises:
        LearningError: with the first that is not.
    """
    taken = (feedback_pb2.TRACK_STATUS_ACCEPTED, feedback_pb2.TRACK_STATUS_DUPLICATE)
    for result in response.results:
        if result.status not in taken:
            status = enum_word(feedback_pb2.TrackStatus.DESCRIPTOR, result.status)
            raise LearningError(f"An event was not taken in: {status} {result.field} {result.problem}".rstrip())


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


async def _all_of(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Returns when all are done; the first error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
