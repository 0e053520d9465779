"""What is asked of decision, what others say of a person, and what is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.chassis.events import ORIGIN, LogPosition
from services.decision.domain.ladder import Choice
from services.decision.domain.layout import Subject
from services.decision.domain.record import Said, Versions
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import Activation, FallbackReason, Level

# A namespace and a value, passed on to identity and kept nowhere.
Identity = tuple[str, str]
# Identity's words for identities that are nobody's: placeholders, or a fingerprint that recognizes nobody here. What a
# visitor brings may be such, so a Decide with it is one for nobody, and no error.
NOBODY = frozenset({"NOBODY_NAMED", "NAMESPACE_NOT_ALLOWED"})


@dataclass(frozen=True, slots=True)
class Ask:
    """One placement of a Decide.

    Args:
        candidate_ids: items to choose from; empty: every item of the catalog.
        slate_size: 0: the placement's own.
    """

    placement_id: str
    candidate_ids: Sequence[str] = ()
    slate_size: int = 0
    excluded_item_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Signals:
    """What the person's browser or consent platform says with the request; passed on to consent and kept nowhere.

    Args:
        jurisdiction: where the person is; empty: the request does not say.
        do_not_personalize: the person objects to personalization, for this request.
    """

    gpc: str = field(default="", repr=False)
    tc_string: str = field(default="", repr=False)
    gpp: str = field(default="", repr=False)
    usp: str = field(default="", repr=False)
    jurisdiction: str = ""
    do_not_personalize: bool = False


@dataclass(frozen=True, slots=True)
class DecideRequest:
    """A Decide.

    Args:
        signals: None where nothing came along. They are no part of the digest: a retry brings those of its own moment,
            and consent is read with them again.
        digest: of the rest of the request; a retry must match it.
        template_version: of the page that asks; kept with the decision.
    """

    request_id: str
    identities: tuple[Identity, ...] = field(repr=False)
    asks: tuple[Ask, ...]
    context: Context = field(repr=False)
    signals: Signals | None
    activation: Activation
    digest: bytes
    template_version: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The decision for one placement, as the caller gets it.

    Args:
        exposure_token: empty where the decision is not in the log as it was answered.
        learnable: the log holds it and its propensities mean something.
        layer: of the person that was used; UNSPECIFIED: nothing was.
    """

    placement_id: str
    decision_id: str
    choice: Choice
    versions: Versions
    holdout: bool
    holdout_bucket: int
    exposure_token: bytes
    learnable: bool
    layer: Level = Level.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer a placement asked for, in that order."""

    decisions: tuple[Answer, ...]
    budget_ms: int
    spent_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """One of the pseudonyms that a person has had."""

    member_id: str
    merged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """Who it is, as identity says.

    Args:
        member_id: whom facts that came with these identities are recorded under.
        holdout_bucket: in [0, 10000).
        required_purposes: must be allowed before anything of the person is used: it was recognized by an identity
            that needs them.
    """

    subject_id: str
    member_id: str
    level: Level
    holdout_bucket: int
    members: tuple[Member, ...]
    required_purposes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Consent:
    """What the person allows, of what was asked for.

    Args:
        objected: purposes that the person objects to, in the ledger or by a signal of this request.
        said: by purpose, the signal that decided about it; purposes that none decided about are absent.
    """

    allowed: frozenset[str]
    version: int
    policy_version: str
    objected: frozenset[str] = frozenset()
    said: Mapping[str, Said] = field(default_factory=dict)

    def objects_to(self, purposes: frozenset[str]) -> bool:
        """Whether one of these purposes is missing because the person objects to it."""
        return not self.objected.isdisjoint(purposes)

    @property
    def refused_by_signal(self) -> dict[str, str]:
        """Purpose → signal, of those that a signal refused, in order."""
        return {purpose: said.signal for purpose, said in sorted(self.said.items()) if purpose not in self.allowed}

    def deciding(self, purposes: frozenset[str]) -> Said:
        """The signal that decided about these purposes together; none where the ledger or the regime did."""
        missing = purposes - self.allowed
        among = missing & self.objected or missing or purposes
        return next((self.said[purpose] for purpose in sorted(among) if purpose in self.said), Said())


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of the person."""

    subject: Subject
    position: LogPosition


@dataclass(frozen=True, slots=True)
class PastDecision:
    """A slate that another system showed.

    Args:
        subject_id: the pseudonym, where the caller knows it; else identities say who it is.
        propensities: one an item, or none at all where the other system did not know them.
        signals: that came with the request then; None where none did. No part of the digest.
        digest: of the whole decision.
    """

    external_id: str
    subject_id: str
    identities: tuple[Identity, ...] = field(repr=False)
    placement_id: str
    item_ids: Sequence[str]
    decided_at: datetime
    propensities: Sequence[float]
    context: Context = field(repr=False)
    digest: bytes
    signals: Signals | None = None


@dataclass(frozen=True, slots=True)
class PastResult:
    """What became of a recorded slate.

    Args:
        scores: the active model's, one an item; empty where it could not score, for *fallback_reason*.
        decision_id: empty where nothing was recorded: it was refused, or the person is nobody who may be recognized.
        position: of its record, also where it had been recorded before; ORIGIN where there is none.
        refused: stable word for why it was not recorded where that is the caller's to mend.
    """

    external_id: str
    decision_id: str
    already_recorded: bool
    scores: Sequence[float]
    fallback_reason: FallbackReason
    position: LogPosition = ORIGIN
    refused: str = ""
