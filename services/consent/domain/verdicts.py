"""Verdicts: whether a person's data may be used for a purpose.

They follow from what stands for each of the person's members, from the signals of the very request, and from the
regime of the place.

Nothing is moved when subjects merge; what the members said is combined at every read. At a merge the most restrictive
of the two sides' answers stands; what any of them says after it is said for the whole person, and the latest stands.
Where a person was merged several times, this goes merge by merge: consent given as a merged person survives the next
merge with somebody who said nothing. An unmerged member has its own answers and no others.

A signal that refuses wins over the ledger, for this request; one that grants counts only where the ledger has no
answer: nobody's refusal is undone by a string that a browser sends. Where neither says anything, the regime does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.consent.domain.ledger import EVERY_PURPOSE, NEVER, Standing, State
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import Purpose
from services.consent.domain.regimes import ANYWHERE, Jurisdiction, is_allowed_unasked, jurisdiction_of, rule_of
from services.consent.domain.signals.decoding import RawSignals, Signals, decode
from services.consent.domain.signals.effect import NO_SIGNAL, OBJECTION, SignalVerdict, Verdicts, purposes_from
from services.consent.domain.signals.errors import Code
from services.consent.domain.signals.mapping import SignalMapping

_EVER = datetime.min.replace(tzinfo=UTC)
_STRICTNESS = {State.GRANTED: 0, State.EXPIRED: 1, State.DENIED: 2, State.REVOKED: 3, State.OBJECTED: 4}
# Of an answer in a word of a later release: whatever it says, nothing that is known here is stricter.
_STRICTEST = 5


@dataclass(frozen=True, slots=True)
class Member:
    """A pseudonym of the person, and when it joined; None for the one the person began with."""

    member_id: str
    merged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Stated:
    """What came with the request itself.

    Args:
        jurisdiction: where the person is; empty: the request does not say.
        do_not_personalize: the person objects to personalization as such.
    """

    raw: RawSignals
    jurisdiction: str = ""
    do_not_personalize: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """Whether this person's data may be used for these purposes; *stated* is None where nothing came along."""

    members: tuple[Member, ...]
    purposes: tuple[str, ...]
    stated: Stated | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether, and the state that decided it; UNSPECIFIED when the person was never asked.

    Args:
        signal: that decided it; empty where the ledger or the regime did.
        signal_reason: a word of signals.reliance.Reason.
    """

    purpose: str
    allowed: bool
    state: State
    signal: str = ""
    signal_reason: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The verdicts on a query; *consent_version* is the highest of the members' ledgers.

    Args:
        problems: what is wrong with the strings that came along, by the name of the signal.
    """

    verdicts: tuple[Verdict, ...]
    consent_version: int
    problems: tuple[tuple[str, Code], ...] = ()


# What stands for each member, by purpose.
Standings = Mapping[str, Mapping[str, Standing]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What stands for members, and the purposes, at one moment."""

    policy: Policy
    standings: Standings


# When the member joined the person, and what stands for it.
MemberAnswer = tuple[datetime | None, Standing]


def evaluate(query: Query, standings: Standings, policy: Policy, now: datetime) -> Evaluation:
    """The verdicts on a query, in the order of its purposes."""
    known = [(one.merged_at, standings[one.member_id]) for one in query.members if one.member_id in standings]
    stood = [one for _, by_purpose in known for one in by_purpose.values()]
    if any(EVERY_PURPOSE in by_purpose for _, by_purpose in known):
        # Erased: whatever the request itself says, and whatever was declared since.
        refused = tuple(Verdict(name, allowed=False, state=State.REVOKED) for name in query.purposes)
        return Evaluation(refused, max(one.consent_version for one in stood))
    place = ANYWHERE
    if policy.jurisdictions:
        stated = "" if query.stated is None else query.stated.jurisdiction
        place = jurisdiction_of(policy.jurisdictions, stated=stated, recorded=_recorded_jurisdiction(stood))
    said: Verdicts = {}
    problems: tuple[tuple[str, Code], ...] = ()
    if query.stated is not None:
        signals = decode(query.stated.raw)
        problems = tuple((name, problem.code) for name, problem in signals.problems.items())
        said = _said(query, query.stated, signals, policy, place, now)
    verdicts = tuple(
        verdict(
            name,
            policy.purposes.get(name),
            [(at, by_purpose[name]) for at, by_purpose in known if name in by_purpose],
            now,
            place=place,
            said=said.get(name, NO_SIGNAL),
        )
        for name in query.purposes
    )
    return Evaluation(verdicts, max((one.consent_version for one in stood), default=0), problems)


def verdict(
    name: str,
    purpose: Purpose | None,
    answers: Sequence[MemberAnswer],
    now: datetime,
    *,
    place: Jurisdiction = ANYWHERE,
    said: SignalVerdict = NO_SIGNAL,
) -> Verdict:
    """Whether the purpose may be pursued; one that is not declared may not."""
    if purpose is None:
        return Verdict(name, allowed=False, state=State.UNSPECIFIED)
    # Consent to what the purpose used to mean is no consent; a refusal of it is still one.
    counting = [
        (at, one) for at, one in answers if one.state is not State.GRANTED or one.purpose_version >= purpose.version
    ]
    standing = combine(counting, now)
    answered = State.UNSPECIFIED if standing is None else state_at(standing, now)
    if _decides(said.state, answered):
        return Verdict(name, said.state is State.GRANTED, said.state, said.signal, said.reason.value)
    if answered is State.UNSPECIFIED:
        return Verdict(name, allowed=is_allowed_unasked(purpose, place), state=State.UNSPECIFIED)
    return Verdict(name, allowed=answered is State.GRANTED, state=answered)


def _decides(said: State, answered: State) -> bool:
    """Whether a signal's word stands against the ledger's."""
    if said is State.OBJECTED:
        return True
    if said is State.DENIED:
        # An objection in the ledger is the stricter of the two, and what the person is to be told.
        return answered is not State.OBJECTED
    return said is State.GRANTED and answered is State.UNSPECIFIED


def _said(
    query: Query, stated: Stated, signals: Signals, policy: Policy, place: Jurisdiction, now: datetime
) -> Verdicts:
    """What the request itself says about each purpose asked for."""
    asked = [policy.purposes[name] for name in query.purposes if name in policy.purposes]
    ruled = {one.id: rule for one in asked if (rule := rule_of(one, place)) is not None}
    said = dict(purposes_from(signals, SignalMapping(ruled), now))
    if stated.do_not_personalize:
        said |= {one.id: OBJECTION for one in asked if one.personalizes}
    return said


def _recorded_jurisdiction(stood: Sequence[Standing]) -> str:
    """Where the person was when they last answered and it was said where; empty: never."""
    known = [one for one in stood if one.jurisdiction]
    return max(known, key=lambda one: one.answered_at).jurisdiction if known else ""


def state_at(standing: Standing, now: datetime) -> State:
    """The state at a time: consent has expired from its expires_at on."""
    return State.EXPIRED if standing.state is State.GRANTED and standing.expires_at <= now else standing.state


def combine(answers: Sequence[MemberAnswer], now: datetime) -> Standing | None:
    """The one answer that stands for the person; None when no member has one.

    Members that never answered do not matter, nor does when they joined.
    """
    if len(answers) < 2:
        return answers[0][1] if answers else None

    def strictness(one: Standing) -> int:
        return _STRICTNESS.get(state_at(one, now), _STRICTEST)

    current: Standing | None = None
    merges = sorted({at or _EVER for at, _ in answers})
    for merged_at, next_at in zip(merges, [*merges[1:], NEVER], strict=True):
        # What the members that join now had answered by now; those that the person began with, until the first merge.
        until = next_at if merged_at == _EVER else merged_at
        sides = [one for at, one in answers if (at or _EVER) == merged_at and one.answered_at <= until]
        current = max([*sides, *([current] if current else [])], key=strictness, default=None)
        since = [one for at, one in answers if (at or _EVER) <= merged_at < one.answered_at <= next_at]
        if since and merged_at != _EVER:
            current = max(since, key=lambda one: (one.answered_at, strictness(one)))
    return current
