"""The ledger: answers recorded and taken back, verdicts, histories, purposes."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.chassis.clock import Clock
from services.chassis.errors import Kind, ServiceError
from services.chassis.ids import content_hash
from services.chassis.ports import Access, AccessLog
from services.chassis.tracing import COMITY_BATCH_SIZE, COMITY_CONSENT_POLICY_VERSION, set_attributes, span
from services.consent.domain.commands import (
    Change,
    Decide,
    Person,
    RecordCommand,
    RevokeCommand,
    View,
    Who,
    check_who,
    digest_of,
    expire,
    record,
    revoke,
)
from services.consent.domain.declaring import Declaration, declare
from services.consent.domain.ledger import Answer
from services.consent.domain.policy import Policy
from services.consent.domain.signals.reliance import Reason
from services.consent.domain.verdicts import Evaluation, Query, Snapshot, evaluate
from services.consent.metrics import CONSENT_CHANGES, CONSENT_SIGNAL_PROBLEMS, CONSENT_VERDICTS

# What one answer of History can carry; a person who answers a banner daily needs 27 years for it.
HISTORY_MAX = 10_000
HISTORY_METHOD = "comity.consent.v1.ConsentService/History"
# Grants whose end is recorded in one go: a fraction of a second's work, after which the leader looks whether it leads.
EXPIRED_MAX = 200

Pause = Callable[[float], Awaitable[None]]


class Ledger(Protocol):
    """The members' ledgers, on the primary."""

    async def change(self, member_id: str, request_id: str, digest: bytes, decide: Decide) -> Change:
        """Decide under the member's lock, append what was decided and update what stands, in one transaction.

        A request id is the member's own: one that was applied before is answered from the ledger, without deciding, and
        another person's counts for nothing.

        Raises:
            ServiceError: what *decide* raises; ALREADY_EXISTS (REQUEST_ID_REUSED); UNAVAILABLE, OUTCOME_UNKNOWN
                among it: that it was applied is said only when it is known.
        """
        ...

    async def snapshot(self, member_ids: Sequence[str]) -> Snapshot:
        """What stands for these members, and the purposes, at one moment after this call began; one round trip.

        Raises:
            ServiceError: UNAVAILABLE, also when the database took too long.
        """
        ...

    async def history(self, member_ids: Sequence[str], *, limit: int) -> list[tuple[str, Answer]]:
        """Every answer of these members, the oldest first, with its member; at most *limit*."""
        ...

    async def expire(self, decide: Decide, *, limit: int) -> int:
        """Decide for the members with grants that ran out and are not recorded to have; how many grants were found.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...


class PolicyStore(Protocol):
    """The policy of the site."""

    async def policy(self) -> Policy:
        """The one that holds."""
        ...

    async def publish(self, decide: Callable[[Policy], Policy]) -> Policy:
        """Put what *decide* makes of the policy in its place; one at a time."""
        ...


class IdentityReader(Protocol):
    """Who somebody is."""

    async def person(self, who: Who) -> Person:
        """The person.

        Raises:
            ServiceError: INVALID (SUBJECT_INVALID); UNAVAILABLE (IDENTITY_UNAVAILABLE).
        """
        ...


@dataclass(frozen=True, slots=True)
class Changed:
    """What a command did, and to whom."""

    subject_id: str
    consent_version: int
    purposes: tuple[str, ...]


class ConsentHandlers:
    """Record, Revoke, Evaluate, History and PublishPurposes.

    Args:
        drain_s: longest time a Decide may take: a revocation is not answered before all that began earlier have ended.
        pause: waits; asyncio.sleep.
    """

    def __init__(
        self,
        ledger: Ledger,
        policies: PolicyStore,
        identity: IdentityReader,
        accesses: AccessLog,
        clock: Clock,
        *,
        drain_s: float,
        pause: Pause,
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._identity = identity
        self._accesses = accesses
        self._clock = clock
        self._drain_s = drain_s
        self._pause = pause

    @property
    def decide_budget_ms(self) -> int:
        """Longest Decide that a revocation waits for, in whole milliseconds, rounded down."""
        # 1.001 s times 1000 is a hair below 1001.
        return int(round(self._drain_s * 1000, 3))

    async def purposes(self) -> list[str]:
        """Names of the declared purposes, in order."""
        return sorted((await self._policies.policy()).purposes)

    async def record(self, who: Who, command: RecordCommand) -> Changed:
        """Record answers: all of them, or none.

        Raises:
            ServiceError: see domain.commands.record, Ledger.change and IdentityReader.person.
        """
        with span("consent.record"):
            person = await self._recorded_under(who)
            return await self._change(person, command, lambda view: record(command, view))

    async def revoke(self, who: Who, command: RevokeCommand) -> Changed:
        """Take consent back. Once this has returned, nothing that was decided with it is still on its way.

        A Decide that begins now reads the revocation; one that began before and read the grant has ended, or missed
        its deadline and emits nothing of it, when the pause is over.

        Raises:
            ServiceError: see domain.commands.revoke, Ledger.change and IdentityReader.person.
        """
        with span("consent.revoke"):
            person = await self._recorded_under(who)
            changed = await self._change(person, command, lambda view: revoke(command, view))
            with span("consent.revoke.drain"):
                # After a retry too: the first try may have been cut off in its pause.
                await self._pause(self._drain_s)
            return changed

    async def evaluate(self, queries: Sequence[Query]) -> tuple[list[Evaluation], str]:
        """The verdicts on each query, in order, and the policy version they follow from; no purposes: all of the site.

        Raises:
            ServiceError: UNAVAILABLE: nobody may take that for a yes.
        """
        with span("consent.evaluate", {COMITY_BATCH_SIZE: len(queries)}):
            snapshot = await self._ledger.snapshot(list({one.member_id for query in queries for one in query.members}))
            set_attributes({COMITY_CONSENT_POLICY_VERSION: snapshot.policy.version})
            now, every = self._clock.now(), tuple(sorted(snapshot.policy.purposes))
            asked = [query if query.purposes else replace(query, purposes=every) for query in queries]
            evaluations = [evaluate(query, snapshot.standings, snapshot.policy, now) for query in asked]
            _count_verdicts(evaluations)
            return evaluations, snapshot.policy.version

    async def history(self, who: Who, access: Access) -> list[tuple[str, Answer]]:
        """Every answer the person gave, under whichever pseudonym, the oldest first; that it was read is a fact.

        Raises:
            ServiceError: UNAVAILABLE (IDENTITY_UNAVAILABLE): part of a history would pass for the whole;
                EXHAUSTED (HISTORY_TOO_LONG).
        """
        check_who(who)
        with span("consent.history"):
            person = await self._identity.person(who)
            answers = await self._ledger.history(person.member_ids, limit=HISTORY_MAX + 1)
            if len(answers) > HISTORY_MAX:
                raise ServiceError(
                    Kind.EXHAUSTED, "HISTORY_TOO_LONG", f"the person gave more than {HISTORY_MAX} answers: export them"
                )
            await self._accesses.accessed(person.subject_id, access, HISTORY_METHOD)
            return answers

    async def expire(self) -> bool:
        """Record that grants ran out, once each; whether there may be more of them.

        Raises:
            ServiceError: UNAVAILABLE: what was not recorded is found again.
        """
        with span("consent.expire"):
            found = await self._ledger.expire(_counted_expiries, limit=EXPIRED_MAX)
            return found == EXPIRED_MAX

    async def publish(self, declared: Declaration, *, validate_only: bool) -> str:
        """Declare purposes, notices and jurisdictions; the version of the site's whole policy with them.

        Raises:
            ServiceError: INVALID (PURPOSES_INVALID); UNAVAILABLE.
        """
        with span("consent.publish_purposes"):
            if validate_only:
                return declare(await self._policies.policy(), declared, content_hash).version
            policy = await self._policies.publish(lambda current: declare(current, declared, content_hash))
            return policy.version

    async def _recorded_under(self, who: Who) -> Person:
        """Whose ledger to write.

        A pseudonym is taken as it is, so that consent can be taken back while identity is away.
        """
        check_who(who)
        if who.subject_id:
            return Person(who.subject_id, who.subject_id, (who.subject_id,))
        return await self._identity.person(who)

    async def _change(
        self, person: Person, command: RecordCommand | RevokeCommand, decide: Callable[[View], tuple[Answer, ...]]
    ) -> Changed:
        digest = digest_of(person.member_id, command)
        change = await self._ledger.change(person.member_id, command.request_id, digest, decide)
        for answer in () if change.is_repeated else change.answers:
            CONSENT_CHANGES.labels(answer.state.name).inc()
        purposes = tuple(answer.purpose for answer in change.answers)
        return Changed(person.subject_id, change.consent_version, purposes)


def _counted_expiries(view: View) -> tuple[Answer, ...]:
    answers = expire(view)
    if answers:
        CONSENT_CHANGES.labels("EXPIRED").inc(len(answers))
    return answers


def _count_verdicts(evaluations: Sequence[Evaluation]) -> None:
    verdicts = [verdict.allowed for one in evaluations for verdict in one.verdicts]
    allowed_count = sum(verdicts)
    CONSENT_VERDICTS.labels("true").inc(allowed_count)
    CONSENT_VERDICTS.labels("false").inc(len(verdicts) - allowed_count)
    for evaluation in evaluations:
        for signal, code in evaluation.problems:
            CONSENT_SIGNAL_PROBLEMS.labels(signal, code.value).inc()
        # Whoever sees these grow should look for a newer release: the framework has a policy that this one has not.
        for signal in {one.signal for one in evaluation.verdicts if one.signal_reason == Reason.POLICY_UNKNOWN}:
            CONSENT_SIGNAL_PROBLEMS.labels(signal, Reason.POLICY_UNKNOWN.value).inc()
