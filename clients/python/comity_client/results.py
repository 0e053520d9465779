"""What calls give back, in plain dataclasses."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

# slate: chosen for this person; fallback: what the site declares or what is popular; client_default: your own.
Source: TypeAlias = Literal["slate", "fallback", "client_default"]
TrackedStatus: TypeAlias = Literal[
    "ACCEPTED", "DUPLICATE", "REFUSED", "DROPPED_NO_CONSENT", "ANONYMIZED", "NOT_DELIVERED"
]
# REFUSED: the person is nobody, was erased, or has not agreed; NOT_DELIVERED: nobody took it in time.
PeopleStatus: TypeAlias = Literal["DONE", "REFUSED", "NOT_DELIVERED"]
ConsentState: TypeAlias = Literal["GRANTED", "DENIED", "REVOKED", "EXPIRED", "OBJECTED"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to show.

    Args:
        item_id: of the catalog.
        variant_id: treatment to render; empty: the item's own.
        slot: place in the slate, from 0.
        score: the ranker's; 0 where nothing was scored.
        propensity: probability, in (0, 1], that this entry was in this slot.
        reason: a Reason, why it is here; empty for the caller's own.
    """

    item_id: str
    variant_id: str = ""
    slot: int = 0
    score: float = 0.0
    propensity: float = 1.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """A placement to decide for, where more is to be said than its id.

    Args:
        slate_size: entries wanted, at most 100; 0: the placement's own.
        candidate_ids: items to choose from; empty: those of the call.
        excluded_item_ids: items that must not be chosen, besides those of the call.
    """

    placement_id: str
    slate_size: int = 0
    candidate_ids: Sequence[str] = ()
    excluded_item_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to show at one placement.

    Args:
        entries: in order of slot; never empty.
        reason: a Reason; CLIENT_DEFAULT when the client answered.
        fallback_reason: a FallbackReason, why the answer is not the one that was aimed for; empty when it is.
        decision_id: names the decision in the log; empty when the client answered.
        exposure_token: proof of the decision, for track; empty when the log does not hold it.
        learnable: False: never train on it.
        versions: part → version that decided (model, feature_set, consent_policy, …).
        layer: how much of the person was used: ANONYMOUS, PSEUDONYMOUS or KNOWN; empty: nothing.
        cause: for people: why the client answered, as what the connection said.
    """

    placement_id: str
    entries: tuple[Entry, ...]
    source: Source
    reason: str
    fallback_reason: str = ""
    decision_id: str = ""
    exposure_token: bytes = b""
    learnable: bool = False
    holdout: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    layer: str = ""
    cause: str = ""


# Placement id → its decision; every placement that was asked for is there.
Page: TypeAlias = Mapping[str, Decision]


@dataclass(frozen=True, slots=True)
class ConsentSignals:
    """What the person's browser or consent platform says with a request; pass on what came, as it came.

    What is malformed grants nothing and never fails the call. Nothing of the strings is kept.

    Args:
        gpc: the Sec-GPC header.
        tc_string: IAB TCF v2 string.
        gpp: IAB Global Privacy Platform string.
        usp: US Privacy string.
        jurisdiction: where the person is, as the site's jurisdictions.yaml names it; empty: the site's default.
        do_not_personalize: the person objects to personalization (GDPR Art. 21), for this request.
    """

    gpc: str = field(default="", repr=False)
    tc_string: str = field(default="", repr=False)
    gpp: str = field(default="", repr=False)
    usp: str = field(default="", repr=False)
    jurisdiction: str = ""
    do_not_personalize: bool = False


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened, to be tracked.

    Args:
        type: as the site bundle declares it, e.g. click.
        identities: namespace → value of the person; None where a visitor brings none.
        decision: what it answers, as decide gave it.
        occurred_at: aware; now when not given.
        event_id: the same id counts once.
        consent_signals: that came with it.
    """

    type: str
    identities: Mapping[str, str | None]
    item_ids: Sequence[str] = ()
    properties: Mapping[str, str | float | bool] = field(default_factory=dict)
    decision: Decision | None = None
    occurred_at: datetime | None = None
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    consent_signals: ConsentSignals | None = None


@dataclass(frozen=True, slots=True)
class Tracked:
    """What became of one event.

    Args:
        event_id: send the event again under this id and it counts once.
        status: NOT_DELIVERED: nobody took it in time; the others are the server's. DROPPED_NO_CONSENT: nothing was
            stored; ANONYMIZED: only its type and items were, without the person.
        field: for REFUSED: the field that is wrong.
        problem: for REFUSED: what is wrong with it and how to mend it; for NOT_DELIVERED: why, a FallbackReason.
        reason: a TrackReason where one tells why it was REFUSED.
        cause: for people: why it was NOT_DELIVERED.
    """

    event_id: str
    status: TrackedStatus
    field: str = ""
    problem: str = ""
    reason: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Identified:
    """What became of a link.

    Args:
        request_id: send it again under this id and it links once.
        status: DONE: they are one person.
        reason: a PeopleReason, why it was REFUSED.
        problem: for people: why there is no link; for NOT_DELIVERED a FallbackReason.
        cause: for people: why it was NOT_DELIVERED.
        merged: two persons became one.
        link_id: names the link; an operator takes it back by it.
        subject_id: the person's pseudonym.
        gave_way_count: of the person's oldest anonymous identities, how many left to make room; each is a person of its
            own again.
    """

    request_id: str
    status: PeopleStatus
    reason: str = ""
    problem: str = ""
    cause: str = ""
    merged: bool = False
    link_id: str = ""
    subject_id: str = ""
    gave_way_count: int = 0


@dataclass(frozen=True, slots=True)
class ConsentChange:
    """What became of an answer.

    Args:
        request_id: send it again under this id and it is recorded once.
        status: DONE: it stands. Anything else: it may not, so send it again or tell the person.
        reason: a PeopleReason, why it was REFUSED.
        problem: for people: why it does not stand; for NOT_DELIVERED a FallbackReason.
        cause: for people: why it was NOT_DELIVERED.
        subject_id: the person's pseudonym.
        consent_version: of the person's ledger after it; a receipt is asked for by it.
        purposes: for revoke: those that were revoked.
    """

    request_id: str
    status: PeopleStatus
    reason: str = ""
    problem: str = ""
    cause: str = ""
    subject_id: str = ""
    consent_version: int = 0
    purposes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """One answer that a person gave.

    Args:
        expires_at: None: it does not expire.
    """

    purpose: str
    state: str
    consent_version: int
    recorded_at: datetime
    collected_at: datetime | None = None
    expires_at: datetime | None = None
    notice_version: str = ""
    notice_language: str = ""
    mechanism: str = ""
    jurisdiction: str = ""
    purpose_version: int = 0
    policy_version: str = ""
    source_hash: str = ""


@dataclass(frozen=True, slots=True)
class ConsentHistory:
    """Every answer that a person gave, the oldest first; the whole where status is DONE, and nothing else.

    Args:
        reason, problem, cause: as of ConsentChange.
    """

    status: PeopleStatus
    reason: str = ""
    problem: str = ""
    cause: str = ""
    records: tuple[ConsentRecord, ...] = ()
