"""Giving the log out again."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest

from services.chassis.errors import ServiceError
from services.chassis.events import LogPosition
from services.feedback.domain.replay import Kind, Place, Range, Replayed
from services.feedback.handlers.replay import ReplayLog
from tests.unit.feedback.world import NOW, FakeConsents, FakeSubjects, member


def fact(kind: Kind, number: int, who: str) -> Replayed:
    return Replayed(kind, f"e{number}", member(who) if who else "", NOW, LogPosition(1, number, number), b"")


class FakeArchive:
    """Two logs, a page an event pair."""

    async def pages(
        self,
        kinds: frozenset[Kind],
        within: Range,
        *,
        placement_id: str,
        member_ids: Sequence[str],
        after: Place,
    ) -> AsyncIterator[tuple[list[Replayed], Place]]:
        """See handlers.ports.Archive."""
        facts = [
            fact(Kind.DECISION, 1, "ann"),
            fact(Kind.DECISION, 2, "bob"),
            fact(Kind.BEHAVIOR, 3, "ann"),
            fact(Kind.OUTCOME, 4, "bob"),
            fact(Kind.BEHAVIOR, 5, ""),
        ]
        chosen = [entry for entry in facts if entry.kind in kinds]
        for start in range(0, len(chosen), 2):
            page = chosen[start : start + 2]
            yield page, Place(position=page[-1].position)


async def replayed(purpose: str, kinds: list[Kind], consents: FakeConsents) -> tuple[list[str], int]:
    replay = ReplayLog(archive=FakeArchive(), subjects=FakeSubjects(), consents=consents)
    pages = [page async for page in replay(kinds, Range(), placement_id="", purpose=purpose)]
    return [event.event_id for page in pages for event in page.events], sum(page.withheld_count for page in pages)


async def test_decisions_come_first_whatever_order_was_asked() -> None:
    """Decisions, then behavior and outcomes in the order of their log."""
    asked = [Kind.OUTCOME, Kind.BEHAVIOR, Kind.DECISION]
    assert await replayed("", asked, FakeConsents()) == (["e1", "e2", "e3", "e4", "e5"], 0)
    assert await replayed("", [Kind.OUTCOME], FakeConsents()) == (["e4"], 0)


async def test_facts_of_people_who_do_not_allow_the_purpose_are_withheld_and_counted() -> None:
    """Consent is asked as it is now; a fact about nobody is given out."""
    consents = FakeConsents()
    consents.refused.add((member("bob"), "model_training"))
    assert await replayed("model_training", list(Kind), consents) == (["e1", "e3", "e5"], 2)


async def test_nothing_is_given_out_while_consent_is_away() -> None:
    """Without an answer there is no permission."""
    consents = FakeConsents()
    consents.down = True
    with pytest.raises(ServiceError, match="down"):
        await replayed("model_training", [Kind.DECISION], consents)


async def test_asking_for_nothing_is_refused() -> None:
    """No kind, or a range that ends before it begins, is a mistake and not an empty answer."""
    replay = ReplayLog(archive=FakeArchive(), subjects=FakeSubjects(), consents=FakeConsents())
    with pytest.raises(ServiceError, match="kinds"):
        _ = [p async for p in replay([], Range(), placement_id="", purpose="")]
    with pytest.raises(ServiceError, match="until"):
        _ = [p async for p in replay([Kind.DECISION], Range(NOW, NOW - timedelta(1)), placement_id="", purpose="")]
