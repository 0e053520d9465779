"""Receipts: what a person can hold against the site, as canonical JSON that is the same bytes each time.

A receipt of a change of consent has the fields of ISO/IEC TS 27560 (consent records and receipts), of what the ledger
knows; nothing in it depends on when it was asked for. Signing is the handlers' (a key is no fact).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from services.consent.domain.ledger import NEVER, Answer, State

CONSENT_SCHEMA = "comity.consent.receipt/1; ISO/IEC TS 27560:2023"
ERASURE_SCHEMA = "comity.erasure.receipt/1"

# How long what was deleted everywhere may still lie in copies that nobody reads: they run out by themselves.
HORIZON_DAYS: Mapping[str, int] = {
    "streams": 7,
    "logs": 14,
    "traces": 14,
    "backups": 30,
    "wrapped_keys_in_backups": 30,
    "models": 30,
}


# What was taken away: (store, name, rows).
Counts = tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """A fact of the ledger with its name in the log."""

    event_id: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Terms:
    """A purpose as it was declared when the answer was given."""

    description: str = ""
    version: int = 0
    legal_basis: str = ""
    owner: str = ""
    retention_days: int = 0


@dataclass(frozen=True, slots=True)
class StepTaken:
    """What one service did in one step of an erasure."""

    service: str
    step: str
    taken_at: datetime
    counts: Counts = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """A receipt and what proves that it is ours.

    Args:
        receipt: canonical JSON.
        signature: Ed25519 over these bytes, 64 bytes.
        key_id: see `key_id_of`.
        public_key: 32 bytes.
    """

    receipt: bytes
    signature: bytes
    key_id: str
    public_key: bytes


# Of what was recorded before sites had to say who answers for it.
UNNAMED_CONTROLLER = "the operator of this site"


def key_id_of(public_key: bytes) -> str:
    """How receipts name the key: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def canonical(content: Mapping[str, Any]) -> bytes:
    """The one way to write this content: sorted keys, no spaces, UTF-8."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def consent_receipt(
    controller: str,
    member_id: str,
    answers: Sequence[RecordedAnswer],
    terms: Mapping[str, Terms],
    policy_version: str,
) -> bytes:
    """The receipt of one change: the answers that one command recorded under a member.

    Args:
        answers: at least one, in their order in the ledger.
        terms: of each purpose, as declared when the answers were recorded.
        policy_version: that these terms are of.
    """
    last = answers[-1]
    collection = next((one.answer.collection for one in answers if one.answer.collection is not None), None)
    return canonical(
        {
            "schema_version": CONSENT_SCHEMA,
            "receipt_id": last.event_id,
            "pii_principal_id": member_id,
            "party_identification": {"pii_controller": controller},
            "consent_version": last.answer.version,
            "privacy_notice": {
                "notice_version": collection.notice_version if collection else "",
                "language": collection.notice_language if collection else "",
            },
            "collection_method": collection.mechanism if collection else _UNCOLLECTED[last.answer.state],
            "jurisdiction": collection.jurisdiction if collection else "",
            "policy_version": collection.policy_version if collection else policy_version,
            "source_hash": collection.source_hash if collection else "",
            "purposes": [_purpose(one, terms.get(one.answer.purpose, Terms())) for one in answers],
            "event_ids": [one.event_id for one in answers],
        }
    )


def erasure_receipt(
    controller: str,
    erasure_id: str,
    member_ids: Sequence[str],
    *,
    requested_at: datetime,
    completed_at: datetime,
    steps: Sequence[StepTaken],
) -> bytes:
    """The receipt of an erasure: what each store held and no longer does, and until when copies may still run out."""
    return canonical(
        {
            "schema_version": ERASURE_SCHEMA,
            "receipt_id": erasure_id,
            "pii_principal_ids": sorted(member_ids),
            "party_identification": {"pii_controller": controller},
            "requested_at": _time(requested_at),
            "completed_at": _time(completed_at),
            "steps": [
                {
                    "service": one.service,
                    "step": one.step,
                    "taken_at": _time(one.taken_at),
                    "counts": [
                        {"store": store, "name": name, "count": count} for store, name, count in sorted(one.counts)
                    ],
                }
                for one in steps
            ],
            "gone_from": {name: _time(completed_at + timedelta(days=days)) for name, days in HORIZON_DAYS.items()},
        }
    )


# How an answer came about that nobody collected.
_UNCOLLECTED = {State.REVOKED: "withdrawal", State.EXPIRED: "expiry"}


def _purpose(recorded: RecordedAnswer, terms: Terms) -> dict[str, Any]:
    answer = recorded.answer
    collection = answer.collection
    return {
        "purpose": answer.purpose,
        "purpose_version": collection.purpose_version if collection else terms.version,
        "description": terms.description,
        "lawful_basis": terms.legal_basis,
        "purpose_owner": terms.owner,
        "retention_period_days": terms.retention_days,
        "event_state": answer.state.name.lower(),
        "event_time": _time(collection.collected_at if collection else answer.recorded_at),
        "recorded_at": _time(answer.recorded_at),
        # "Never" is a value: an absent one could be a receipt that was cut.
        "expires_at": _expiry(answer),
    }


def _expiry(answer: Answer) -> str:
    if answer.state is not State.GRANTED:
        return "not applicable"
    return "never" if answer.expires_at >= NEVER else _time(answer.expires_at)


def _time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
