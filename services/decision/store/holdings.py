"""What decision holds about people: the decisions made for them, and that models were trained on them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from comity.decision.v1 import decision_events_pb2
from google.protobuf.message import Message

from services.chassis.erasure import POSTGRES, Erasure, Step, count_in, delete_from_log
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import RecordedEvent
from services.chassis.holdings import HeldRecord, Holding, log_holdings, log_records
from services.chassis.postgres import Pool, transaction
from services.chassis.sealing import Sealer
from services.decision.domain.explain import Explanation
from services.decision.domain.record import DecisionRecord
from services.decision.store.model_members import forget_in
from services.decision.wire.record import record_from_pb

PERSONALIZED = ("profile_personalization", "measurement", "model_training")

# handlers.inspect.InspectDecisions.explained is one.
Explain = Callable[[DecisionRecord], Awaitable[Explanation]]


class DecisionHoldings:
    """chassis.holdings.Holdings of decision."""

    def __init__(self, pool: Pool, sealer: Sealer, explain: Explain) -> None:
        self._pool = pool
        self._sealer = sealer
        self._explain = explain

    def describe(self) -> Sequence[Holding]:
        """See chassis.holdings.Holdings."""
        decisions = "what was shown to the person, from what it was chosen and by which features"
        return [
            *log_holdings(decisions, sealed=True, purposes=PERSONALIZED, read_by=("feedback", "learning")),
            Holding(
                POSTGRES,
                "model_members",
                "digests of the members that a model was trained on",
                "deleted, and the model is marked",
                purposes=("model_training",),
            ),
            Holding(
                POSTGRES,
                "models",
                "trees fitted to many people's decisions; no parameter of one person",
                "marked: trained again within 30 days",
                purposes=("model_training",),
            ),
        ]

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        """See chassis.holdings.Holdings. Each decision with why it came out as it did."""
        async for record in log_records(self._pool, self._sealer.open_many, member_ids, tell=self._told):
            yield record

    async def erase(self, step: Step, erasure: Erasure) -> None:
        """See chassis.holdings.Holdings."""
        if step in (Step.WITHDRAW, Step.DELETE):
            # Again when rows are deleted: a model may have been registered since.
            async with transaction(self._pool) as connection:
                marked, members = await forget_in(connection, erasure.member_ids)
                counts = {(POSTGRES, "models"): marked, (POSTGRES, "model_members"): members}
                await count_in(connection, erasure.erasure_id, step, counts)
        if step is Step.DELETE:
            await delete_from_log(self._pool, erasure)

    async def _told(self, event: RecordedEvent, message: Message) -> Mapping[str, Any]:
        if not isinstance(message, decision_events_pb2.DecisionMade):
            return {}
        try:
            explanation = await self._explain(record_from_pb(message, event.subject_id))
        except ServiceError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            # The site it was made by is not kept.
            return {}
        without = list(explanation.without_exploration.item_ids)
        return {"explanation": [asdict(step) for step in explanation.steps], "without_exploration": without}
