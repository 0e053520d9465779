"""Who a Decide is for, what they allow and what is known of them, asked within the budget."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from services.chassis.deadline import deadline_scope
from services.chassis.errors import Kind
from services.decision.domain.record import Said
from services.decision.domain.request import NOBODY, Consent, Identity, Person, Profile, Signals
from services.decision.domain.vocabulary import StageOutcome
from services.decision.handlers.ports import ConsentReader, DecisionLog, FeatureReader, IdentityReader
from services.decision.handlers.stages import PREFETCHED_BY, RESOLVED_BY, Budget, Ended, within

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out about the person, and how finding it out ended.

    Args:
        budget_too_short: something was abandoned before it usually ends.
    """

    identity: StageOutcome = StageOutcome.SKIPPED
    consent: StageOutcome = StageOutcome.SKIPPED
    features: StageOutcome = StageOutcome.SKIPPED
    person: Person | None = None
    permission: Consent | None = None
    profile: Profile | None = None
    budget_too_short: bool = False

    @property
    def allowed(self) -> frozenset[str]:
        """Purposes that are allowed; without an answer, or where the person may not be recognized, none are."""
        return self._answer.allowed

    def objects_to(self, purposes: frozenset[str]) -> bool:
        """Whether the person objects to one of these purposes."""
        return self._answer.objects_to(purposes)

    @property
    def refused_by_signal(self) -> dict[str, str]:
        """Purpose → signal, of those asked for that a signal refused."""
        return self._answer.refused_by_signal

    def deciding(self, purposes: frozenset[str]) -> Said:
        """The signal that decided about these purposes."""
        return self._answer.deciding(purposes)

    @property
    def _answer(self) -> Consent:
        return _NO_ANSWER if self.permission is None or self.consent is not StageOutcome.OK else self.permission


_NO_ANSWER = Consent(frozenset(), 0, "")


class People:
    """Asks identity, consent and features."""

    def __init__(
        self, identity: IdentityReader, consent: ConsentReader, features: FeatureReader, log: DecisionLog
    ) -> None:
        self._identity = identity
        self._consent = consent
        self._features = features
        self._log = log

    async def know(
        self,
        identities: tuple[Identity, ...],
        budget: Budget,
        *,
        purposes: tuple[str, ...],
        signals: Signals | None,
        feature_set_version: str,
        as_of: datetime,
        recorded: bool = True,
    ) -> Known:
        """What is known of the person; no *purposes*: only who it is, because nothing of the profile will be used.

        Args:
            recorded: something will be recorded about the person, and needs a data key.

        Raises:
            ServiceError: INVALID when identity refuses the identities: only the caller can mend those.
        """
        resolved = await within("resolve", self._identity.resolve(identities), budget.at(RESOLVED_BY))
        if resolved.error is not None and resolved.error.reason in NOBODY:
            return Known(identity=StageOutcome.OK, consent=StageOutcome.REFUSED)
        if resolved.error is not None and resolved.error.kind is Kind.INVALID:
            raise resolved.error
        person = resolved.value
        if person is None:
            return Known(identity=resolved.outcome, budget_too_short=resolved.too_short)
        known = Known(identity=StageOutcome.OK, person=person)
        if person.required_purposes and not purposes:
            # Nobody asks whether the person may be recognized: then nothing is recorded about them either.
            return Known(identity=StageOutcome.OK)
        # Sealing the decision needs the member's key: it comes in beside the reads and not after them.
        held = not recorded or bool(person.required_purposes) or self._log.holds_key(person.member_id)
        key = None if held else self._log.fetch_key(person.member_id)
        if not purposes:
            if key is not None:
                await within("key", key, budget.at(PREFETCHED_BY))
            return known
        return await self._prefetch(known, person, key, budget, purposes, signals, feature_set_version, as_of)

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
        """Consent, features and the data key side by side."""
        until_s = budget.at(PREFETCHED_BY)
        read = _told_until(until_s, self._features.read(feature_set_version, person, as_of))
        beside: list[asyncio.Task[Ended[Any]]] = [asyncio.create_task(within("features", read, until_s))]
        if key is not None:
            beside.append(asyncio.create_task(within("key", key, until_s)))
        try:
            # Sent now, after the call began: the guarantee of a revocation rests on it.
            asked = tuple(sorted(person.required_purposes.union(purposes)))
            reading = self._consent.evaluate(person.members, asked, signals)
            consent = await within("consent", reading, until_s)
            features: Ended[Profile] = await beside[0]
            for task in beside[1:]:
                await task
        finally:
            for task in beside:
                task.cancel()
        outcome = _outcome(consent, person)
        return Known(
            identity=known.identity,
            # Whoever may not be recognized is nobody, in the log too; and only an answer says that one may.
            person=person if outcome is StageOutcome.OK or not person.required_purposes else None,
            consent=outcome,
            permission=consent.value,
            features=features.outcome,
            profile=features.value,
            budget_too_short=consent.too_short or features.too_short,
        )


async def _told_until(until_s: float, work: Awaitable[T]) -> T:
    """Await *work*, which learns when it is given up: features divide that time among cache and database."""
    with deadline_scope(max(0.0, until_s - asyncio.get_running_loop().time())):
        return await work


def _outcome(consent: Ended[Consent], person: Person) -> StageOutcome:
    """How asking ended; REFUSED when the person was recognized by what they do not allow to recognize them."""
    if consent.value is not None and not person.required_purposes <= consent.value.allowed:
        return StageOutcome.REFUSED
    return consent.outcome
