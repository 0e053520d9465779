"""The commands that change the ledger, and the answers that follow from them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.chassis.errors import Kind, ServiceError, invalid
from services.consent.domain.checks import (
    Problem,
    answer_problems,
    notice_problems,
    place_problems,
    raise_first,
    time_problems,
    unknown_purposes,
)
from services.consent.domain.ledger import NEVER, Answer, Collection, Standing, State
from services.consent.domain.policy import Policy


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
        source_hash: SHA-256, hex, of what the answers were read from.
        jurisdiction: where the person was, as the site names it.
        do_not_personalize: the person objects to personalization as such.
    """

    request_id: str
    answers: tuple[tuple[str, State], ...]
    notice_version: str = ""
    notice_language: str = ""
    mechanism: str = ""
    collected_at: datetime | None = None
    expires_at: datetime = NEVER
    source_hash: str = ""
    jurisdiction: str = ""
    do_not_personalize: bool = False


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
        ServiceError: INVALID; its reason is that of the first problem, its problems are all of them;
            FAILED_PRECONDITION (CONTROLLER_UNKNOWN): nobody can agree to what nobody answers for.
    """
    if not view.policy.controller and any(state is State.GRANTED for _, state in command.answers):
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "CONTROLLER_UNKNOWN",
            "The site does not say who answers for people's data; write controller into site.yaml and apply it.",
        )
    collected_at = view.now if command.collected_at is None else min(command.collected_at, view.now)
    raise_first(_record_problems(command, view, collected_at))

    def collection(purpose: str) -> Collection:
        return Collection(
            collected_at=collected_at,
            purpose_version=view.policy.purposes[purpose].version,
            policy_version=view.policy.version,
            notice_version=command.notice_version,
            notice_language=command.notice_language,
            mechanism=command.mechanism,
            source_hash=command.source_hash,
            jurisdiction=command.jurisdiction,
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
        for version, (purpose, state) in enumerate(_answers(command, view.policy), view.version + 1)
    )


def revoke(command: RevokeCommand, view: View) -> tuple[Answer, ...]:
    """The revocations to append, also of what was never granted: a revocation is a fact, not an absence.

    Raises:
        ServiceError: INVALID (PURPOSE_UNKNOWN), FAILED_PRECONDITION (NO_PURPOSES).
    """
    raise_first(unknown_purposes("purposes[{}]", command.purposes, view.policy))
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


def expire(view: View) -> tuple[Answer, ...]:
    """The facts that grants ran out, of those that did and that the ledger does not say it of yet; each once."""
    return tuple(
        Answer(name, State.EXPIRED, version, view.now, expires_at=view.standings[name].expires_at)
        for version, name in enumerate(_ended(view), view.version + 1)
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
            # Only where given: a command that was recorded before there were these is still the same command.
            more = [command.source_hash, command.jurisdiction, command.do_not_personalize]
            said += [more] if any(more) else []
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


def _record_problems(command: RecordCommand, view: View, collected_at: datetime) -> Iterator[Problem]:
    yield from answer_problems(command.answers, view.policy, do_not_personalize=command.do_not_personalize)
    yield from notice_problems(
        command.answers,
        view.policy,
        version=command.notice_version,
        language=command.notice_language,
        collected_at=collected_at,
    )
    yield from place_problems(command.answers, view.policy, command.jurisdiction)
    yield from time_problems(command.collected_at, command.expires_at, view.now)


def _ended(view: View) -> list[str]:
    return sorted(name for name, standing in view.standings.items() if standing.has_run_out(view.now))


def _answers(command: RecordCommand, policy: Policy) -> list[tuple[str, State]]:
    """What is answered; an objection to personalization as such is one to every purpose that personalizes."""
    if not command.do_not_personalize:
        return list(command.answers)
    personal = sorted(one.id for one in policy.purposes.values() if one.personalizes)
    others = [(purpose, state) for purpose, state in command.answers if purpose not in personal]
    return [*others, *((purpose, State.OBJECTED) for purpose in personal)]
