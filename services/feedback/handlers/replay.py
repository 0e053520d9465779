"""Gives the retained log out again, page by page, less what people no longer allow."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from services.chassis.errors import invalid
from services.chassis.events import ORIGIN
from services.feedback.domain.behavior import ConsentQuestion, Person, Subject
from services.feedback.domain.replay import BEGINNING, Kind, Place, Range, Replayed
from services.feedback.handlers.ports import Archive, Consents, Subjects


@dataclass(frozen=True, slots=True)
class ReplayPage:
    """Facts in order, how many were withheld among them, and where the page ends."""

    events: tuple[Replayed, ...]
    withheld_count: int
    end: Place


class ReplayLog:
    """The use case."""

    def __init__(self, *, archive: Archive, subjects: Subjects, consents: Consents) -> None:
        self._archive = archive
        self._subjects = subjects
        self._consents = consents

    async def __call__(
        self,
        kinds: Sequence[Kind],
        within: Range,
        *,
        placement_id: str,
        purpose: str,
        member_ids: Sequence[str] = (),
        after: Place = BEGINNING,
    ) -> AsyncIterator[ReplayPage]:
        """Decisions first (by time), then behavior and outcomes (by position); memory does not grow with the log.

        Consent is asked for each page as it leaves: what is withheld is withheld by what people say now.
        Only what is recorded under *member_ids*, where any are given; of suppressed people too, until it is deleted.
        Only what comes after the place *after*: so a log that takes longer than a call is read in several.

        Raises:
            ServiceError: INVALID for no kind or an empty range; UNAVAILABLE when identity or consent does not answer.
        """
        if not kinds:
            raise invalid("kinds", "must name at least one kind of fact")
        if within.is_empty:
            raise invalid("until", "must be later than since")
        for group in _groups(kinds):
            if after.position != ORIGIN and Kind.DECISION in group:
                continue
            pages = self._archive.pages(group, within, placement_id=placement_id, member_ids=member_ids, after=after)
            async for page, end in pages:
                yield await self._permitted(page, end, purpose)

    async def _permitted(self, page: Sequence[Replayed], end: Place, purpose: str) -> ReplayPage:
        if not purpose:
            return ReplayPage(tuple(page), 0, end)
        willing = await self._willing(list({event.member_id: None for event in page if event.member_id}), purpose)
        # A fact about nobody is nobody's to withhold.
        kept = tuple(event for event in page if not event.member_id or event.member_id in willing)
        return ReplayPage(kept, len(page) - len(kept), end)

    async def _willing(self, member_ids: Sequence[str], purpose: str) -> frozenset[str]:
        """Members whose person, with all the members it has now, allows the purpose."""
        resolved = await self._subjects.resolve([Person(subject_id=member_id) for member_id in member_ids])
        people = {
            member_id: subject
            for member_id, subject in zip(member_ids, resolved, strict=True)
            if isinstance(subject, Subject)
        }
        questions = [ConsentQuestion(subject.members, (purpose,)) for subject in people.values()]
        answers = await self._consents.allowed(questions) if questions else []
        return frozenset(member for member, answer in zip(people, answers, strict=True) if purpose in answer.allowed)


def _groups(kinds: Sequence[Kind]) -> list[frozenset[Kind]]:
    """Decisions are a log of their own; behavior and outcomes share one and come out in its order."""
    asked = frozenset(kinds)
    groups = [asked & {Kind.DECISION}, asked & {Kind.BEHAVIOR, Kind.OUTCOME}]
    return [group for group in groups if group]
