"""The ledger: what people answered, fact by fact, and what stands of it for one member."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from services.chassis.words import Word

# A consent that does not expire says so: the latest time there is, not the absence of one.
NEVER = datetime.max.replace(tzinfo=UTC)
# In the place of a purpose: what stands for an erased member, to every purpose that there is or will be. No purpose is
# named so.
EVERY_PURPOSE = ""


class State(Word):
    """Where a purpose stands; the numbers are those of comity.consent.v1.ConsentState."""

    UNSPECIFIED = 0
    GRANTED = 1
    DENIED = 2
    REVOKED = 3
    EXPIRED = 4
    OBJECTED = 5


@dataclass(frozen=True, slots=True)
class Collection:
    """How and under which notice an answer was collected.

    Args:
        source_hash: SHA-256, hex, of what the answer was read from; empty: nothing of the kind.
        jurisdiction: where the person was, as the site names it; empty: nobody said.
    """

    collected_at: datetime
    purpose_version: int
    policy_version: str
    notice_version: str = ""
    notice_language: str = ""
    mechanism: str = ""
    source_hash: str = ""
    jurisdiction: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One fact of the ledger: a member's answer to a purpose, or that the answer ran out.

    Args:
        state: GRANTED, DENIED, OBJECTED or REVOKED; EXPIRED where a grant ran out.
        version: of the member's ledger after it.
        expires_at: when the grant ends, or ended.
        collection: None for a revocation, which needs no notice, and for an expiry.
    """

    purpose: str
    state: State
    version: int
    recorded_at: datetime
    expires_at: datetime = NEVER
    collection: Collection | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands of a member's answers to one purpose.

    Args:
        consent_version: of the ledger when the purpose was last written about.
        answered_at: when the person gave the answer that stands.
        purpose_version: the answer was given to; 0 for a revocation, which holds for all.
        jurisdiction: where the person was when it was last said; empty: nobody said.
        expiry_recorded_for: the expires_at whose passing is a fact of the ledger; NEVER: none is.
    """

    state: State
    consent_version: int
    recorded_at: datetime
    answered_at: datetime
    expires_at: datetime
    purpose_version: int
    jurisdiction: str = ""
    expiry_recorded_for: datetime = NEVER

    def has_run_out(self, now: datetime) -> bool:
        """Whether it is consent that ended, and the ledger does not say so yet."""
        is_over = self.state is State.GRANTED and self.expires_at <= now
        return is_over and self.expiry_recorded_for != self.expires_at


def evolve(standing: Standing | None, answer: Answer) -> Standing:
    """What stands after an answer: the one the person gave last.

    An answer that was collected before the standing one (an import, a late upload) stays in the history and changes
    nothing: else an old grant would undo a revocation. What is said now is always the last, whatever the clock did.

    That a grant ran out changes nothing that stands: a grant past its expires_at counts as expired by itself.
    """
    if answer.state is State.EXPIRED:
        assert standing is not None, "only what was granted runs out"
        return replace(standing, consent_version=answer.version, expiry_recorded_for=answer.expires_at)
    collected_at = answer.recorded_at if answer.collection is None else answer.collection.collected_at
    is_late = collected_at < answer.recorded_at
    if standing is not None and is_late and collected_at < standing.answered_at:
        return replace(standing, consent_version=answer.version)
    earliest = collected_at if standing is None or is_late else max(collected_at, standing.answered_at)
    return Standing(
        state=answer.state,
        consent_version=answer.version,
        recorded_at=answer.recorded_at,
        answered_at=earliest,
        expires_at=answer.expires_at,
        purpose_version=0 if answer.collection is None else answer.collection.purpose_version,
        jurisdiction=_jurisdiction(standing, answer),
    )


def _jurisdiction(standing: Standing | None, answer: Answer) -> str:
    """Where the person is: an answer that does not say leaves it as it was."""
    stated = "" if answer.collection is None else answer.collection.jurisdiction
    return stated or ("" if standing is None else standing.jurisdiction)


def fold(answers: Iterable[Answer]) -> dict[str, Standing]:
    """What stands of a member's whole ledger, by purpose."""
    standings: dict[str, Standing] = {}
    for answer in answers:
        standings[answer.purpose] = evolve(standings.get(answer.purpose), answer)
    return standings
