"""The commands that change the ledger, and the answers that follow from them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.chassis.errors import FieldProblem, Kind, ServiceError, invalid
from services.consent.domain.ledger import NEVER, Answer, Collection, Standing, State
from services.consent.domain.purposes import Policy

RECORDABLE = (State.GRANTED, State.DENIED, State.OBJECTED)
# Clocks of honest servers differ; what is this little ahead counts as now.
CLOCK_SKEW = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Identity:
    """An identifier as a caller presents it."""

    namespace: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Who:
    """The person a call is about: a pseudonym, or identities that identity resolves."""

    subject_id: str = ""
    identities: tuple[Identity, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Person:
    """Who that is.

    Args:
        subject_id: what the caller is told.
        member_id: what the answers are recorded under.
        member_ids: all of the person's pseudonyms.
    """

    subject_id: str
    member_id: str
    member_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What a command is decided on: the member's ledger and the site's purposes, as they are under the lock."""

    policy: Policy
    standings: Mapping[str, Standing]
    version: int
    now: datetime


@dataclass(frozen=True, slots=True)
class RecordCommand:
    """Records answers to purposes: all of them, or none.

    Args:
        collected_at: None: now.
        expires_at: NEVER for consent that does not expire.
    """

    request_id: str
    answers: tuple[tuple[str, State], ...]
    notice_version: str = ""
    notice_language: str = ""
    mechanism: str = ""
    collected_at: datetime | None = None
    expires_at: datetime = NEVER


@dataclass(frozen=True, slots=True)
class RevokeCommand:
    """Takes consent back; no purposes: all of the site."""

    request_id: str
    purposes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What a command did to a ledger.

    Args:
        consent_version: where the ledger stood after it.
        answers: those that it appended, now or when it was first applied.
        is_repeated: it had been applied before; nothing was written now.
    """

    consent_version: int
    answers: tuple[Answer, ...]
    is_repeated: bool = False


# What a command does to a ledger, decided under its lock.
Decide = Callable[[View], tuple[Answer, ...]]


def record(command: RecordCommand, view: View) -> tuple[Answer, ...]:
    """The answers to append.

    Raises:
        ServiceError: INVALID; its reason is that of the first problem, its problems are all of them.
    """
    _raise_first([*_answer_problems(command, view.policy), *_time_problems(command, view.now)])
    collected_at = view.now if command.collected_at is None else min(command.collected_at, view.now)

    def collection(purpose: str) -> Collection:
        return Collection(
            collected_at=collected_at,
            purpose_version=view.policy.purposes[purpose].version,
            policy_version=view.policy.version,
            notice_version=command.notice_version,
            notice_language=command.notice_language,
            mechanism=command.mechanism,
        )

    return tuple(
        Answer(
            purpose=purpose,
            state=state,
            version=version,
            recorded_at=view.now,
            # Only consent runs out: a refusal holds until the person says otherwise.
            expires_at=command.expires_at if state is State.GRANTED else NEVER,
            collection=collection(purpose),
        )
        for version, (purpose, state) in enumerate(command.answers, view.version + 1)
    )


def revoke(command: RevokeCommand, view: View) -> tuple[Answer, ...]:
    """The revocations to append, also of what was never granted: a revocation is a fact, not an absence.

    Raises:
        ServiceError: INVALID (PURPOSE_UNKNOWN), FAILED_PRECONDITION (NO_PURPOSES).
    """
    _raise_first(
        [
            ("PURPOSE_UNKNOWN", _unknown(f"purposes[{index}]", view.policy))
            for index, purpose in enumerate(command.purposes)
            if purpose not in view.policy.purposes
        ]
    )
    purposes = sorted(set(command.purposes)) or sorted(view.policy.purposes)
    if not purposes:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "NO_PURPOSES",
            "no purpose is declared: apply a site bundle first",
        )
    return tuple(
        Answer(purpose, State.REVOKED, version, view.now) for version, purpose in enumerate(purposes, view.version + 1)
    )


def digest_of(member_id: str, command: RecordCommand | RevokeCommand) -> bytes:
    """Tells this command from others under the same request id. Holds the pseudonym, never an identity."""
    match command:
        case RecordCommand():
            said: list[object] = [
                "record",
                [[purpose, int(state)] for purpose, state in command.answers],
                [command.notice_version, command.notice_language, command.mechanism],
                [command.collected_at and command.collected_at.isoformat(), command.expires_at.isoformat()],
            ]
        case RevokeCommand():
            said = ["revoke", sorted(set(command.purposes))]
    return hashlib.sha256(json.dumps([member_id, *said]).encode()).digest()


def check_who(who: Who) -> None:
    """Returns when it is clear who is meant.

    Raises:
        ServiceError: INVALID (SUBJECT_INVALID).
    """
    if bool(who.subject_id) == bool(who.identities):
        problem = "give subject_id or identities" + (", not both" if who.subject_id else "")
        raise invalid("subject", problem, reason="SUBJECT_INVALID")


_Problem = tuple[str, FieldProblem]


def _answer_problems(command: RecordCommand, policy: Policy) -> list[_Problem]:
    problems: list[_Problem] = []
    seen: set[str] = set()
    for index, (purpose, state) in enumerate(command.answers):
        field_name = f"answers[{index}]"
        if purpose not in policy.purposes:
            problems.append(("PURPOSE_UNKNOWN", _unknown(f"{field_name}.purpose", policy)))
        elif purpose in seen:
            problem = "is answered twice; give one answer a purpose"
            problems.append(("PURPOSE_REPEATED", FieldProblem(f"{field_name}.purpose", problem)))
        if state not in RECORDABLE:
            problem = "must be GRANTED, DENIED or OBJECTED; take consent back with Revoke, let it end with expires_at"
            problems.append(("STATE_NOT_RECORDABLE", FieldProblem(f"{field_name}.state", problem)))
        seen.add(purpose)
    if not command.answers:
        problems.append(("ANSWERS_MISSING", FieldProblem("answers", "give at least one answer")))
    return problems


def _time_problems(command: RecordCommand, now: datetime) -> list[_Problem]:
    problems: list[_Problem] = []
    if command.collected_at is not None and command.collected_at > now + CLOCK_SKEW:
        problem = "is in the future; give the time of the answer, or leave it out for now"
        problems.append(("COLLECTED_IN_FUTURE", FieldProblem("collected_at", problem)))
    if command.expires_at <= now:
        problem = "is in the past; give a time to come, or leave it out for consent that does not expire"
        problems.append(("EXPIRES_IN_PAST", FieldProblem("expires_at", problem)))
    return problems


def _unknown(field_name: str, policy: Policy) -> FieldProblem:
    return FieldProblem(field_name, f"is no declared purpose; declared are: {policy.names}")


def _raise_first(problems: list[_Problem]) -> None:
    if problems:
        reason, first = problems[0]
        fields = tuple(problem for _, problem in problems)
        raise ServiceError(Kind.INVALID, reason, f"{first.field}: {first.problem}", problems=fields)
