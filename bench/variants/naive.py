"""The naive design: one downstream call after the other, each on its own, and an insert a Decide."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from services.chassis import eventstore, group_commit
from services.chassis.gather import Load
from services.chassis.lifecycle import run
from services.decision import clients
from services.decision.domain.request import Person, Signals
from services.decision.handlers.people import Known, People
from services.decision.handlers.stages import PREFETCHED_BY, Budget, within


class OneByOne:
    """Stands where a Gatherer stands, and sends every query alone."""

    def __init__(
        self, send: Callable[[list[Any]], Awaitable[Sequence[Any]]], load: Load, *, name: str, **_: object
    ) -> None:
        self._send = send

    def __class_getitem__(cls, _: object) -> "type[OneByOne]":
        return cls

    async def __call__(self, query: Any) -> Any:
        """The result of this query."""
        (result,) = await self._send([query])
        if isinstance(result, Exception):
            raise result
        return result


class Serial(People):
    """Asks consent, then features, then for the key."""

    async def _prefetch(
        self,
        known: Known,
        person: Person,
        key: Awaitable[None] | None,
        budget: Budget,
        purposes: tuple[str, ...],
        signals: Signals | None,
        feature_set_version: str,
        as_of: datetime,
    ) -> Known:
        until_s = budget.at(PREFETCHED_BY)
        consent = await within("consent", self._consent.evaluate(person.members, purposes, signals), until_s)
        features = await within("features", self._features.read(feature_set_version, person, as_of), until_s)
        if key is not None:
            await within("key", key, until_s)
        return Known(
            identity=known.identity,
            consent=consent.outcome,
            features=features.outcome,
            person=person,
            permission=consent.value,
            profile=features.value,
        )


class InsertEach(group_commit.GroupCommit[Any, Any]):
    """Stands where GroupCommit stands, and commits every item alone, as many at once as come."""

    async def __call__(self, item: Any, *, bytes_count: int = 0, traced: bool = False) -> Any:
        """The item's result."""
        (result,) = await asyncio.shield(asyncio.ensure_future(self._commit([item])))
        if isinstance(result, Exception):
            raise result
        return result


if __name__ == "__main__":
    with (
        patch.object(clients, "Gatherer", OneByOne),
        patch.object(eventstore, "GroupCommit", InsertEach),
        patch.object(wiring, "People", Serial),
    ):
        run("decision", wiring.Settings, wiring.build)
