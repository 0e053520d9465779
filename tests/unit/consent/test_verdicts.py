"""Verdicts say what the person said: no more, and never more than was said."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent.domain.ledger import NEVER, Standing, State
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, LEGITIMATE_INTEREST, Purpose
from services.consent.domain.verdicts import Member, Query, combine, evaluate, state_at, verdict

START = datetime(2026, 11, 1, tzinfo=UTC)
REFUSALS = (State.DENIED, State.OBJECTED, State.REVOKED)
# From the least to the most restrictive.
STRICTEST = [State.GRANTED, State.EXPIRED, State.DENIED, State.REVOKED, State.OBJECTED]


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


NOW = at(1000)


def said(state: State, minute: float, *, purpose_version: int = 1, expires_at: datetime = NEVER) -> Standing:
    """An answer that stands since *minute*."""
    return Standing(state, 1, at(minute), at(minute), expires_at, purpose_version)


def purpose(basis: str = CONSENT, version: int = 1) -> Purpose:
    return Purpose("p", "what it is for", basis, "owner", 30, version)


def verdict_on(*answers: tuple[float | None, Standing], basis: str = CONSENT, version: int = 1) -> State:
    """The state that decides; checks that only a grant allows."""
    timed = [(None if minute is None else at(minute), one) for minute, one in answers]
    found = verdict("p", purpose(basis, version), timed, NOW)
    assert found.allowed == (found.state is State.GRANTED)
    return found.state


states = st.sampled_from([State.GRANTED, *REFUSALS])
standings = st.builds(
    said,
    states,
    st.integers(0, 500),
    purpose_version=st.integers(1, 3),
    expires_at=st.one_of(st.just(NEVER), st.integers(400, 1600).map(at)),
)
joined = st.one_of(st.none(), st.integers(0, 500).map(at))
answers = st.lists(st.tuples(joined, standings), max_size=5)


@pytest.mark.parametrize(("basis", "allowed"), [(CONSENT, False), (LEGITIMATE_INTEREST, True)])
def test_a_person_who_was_never_asked(basis: str, allowed: bool) -> None:
    """Only a legitimate interest is allowed without an answer."""
    found = verdict("p", purpose(basis), [], NOW)
    assert (found.allowed, found.state) == (allowed, State.UNSPECIFIED)


@pytest.mark.parametrize("basis", [CONSENT, LEGITIMATE_INTEREST])
@pytest.mark.parametrize("state", REFUSALS)
def test_a_refusal_is_never_overruled(basis: str, state: State) -> None:
    """Denied, objected and revoked mean no, whatever the legal basis and however the purpose changed."""
    assert verdict_on((None, said(state, 0)), basis=basis, version=9) is state


def test_an_undeclared_purpose_is_not_allowed() -> None:
    """Nobody agreed to what nobody declared."""
    assert not verdict("p", None, [(None, said(State.GRANTED, 0))], NOW).allowed


def test_consent_to_an_older_purpose_does_not_count() -> None:
    """A changed purpose asks again: as though the person had never been asked."""
    assert verdict_on((None, said(State.GRANTED, 0, purpose_version=1)), version=1) is State.GRANTED
    assert verdict_on((None, said(State.GRANTED, 0, purpose_version=1)), version=2) is State.UNSPECIFIED


def test_consent_expires_at_its_time() -> None:
    """Up to the last microsecond before expires_at it stands, from then on not; never is a time like others."""
    grant = said(State.GRANTED, 0, expires_at=NOW)
    assert state_at(grant, NOW - timedelta(microseconds=1)) is State.GRANTED
    assert state_at(grant, NOW) is State.EXPIRED
    assert state_at(said(State.GRANTED, 0), NEVER - timedelta(microseconds=1)) is State.GRANTED
    assert state_at(replace(grant, state=State.REVOKED), NOW) is State.REVOKED


@given(one=states, other=states)
def test_a_merge_takes_the_most_restrictive_answer(one: State, other: State) -> None:
    """Of what both sides said before the merge, whichever was said later."""
    expected = max(one, other, key=STRICTEST.index)
    assert verdict_on((None, said(one, 1)), (10, said(other, 2))) is expected
    assert verdict_on((None, said(one, 2)), (10, said(other, 1))) is expected


@given(states=st.lists(states, min_size=2, max_size=4), latest=states)
def test_after_a_merge_the_latest_answer_stands(states: list[State], latest: State) -> None:
    """What is said as one person is said for all of it."""
    first, *others = states
    members = [(None, said(first, 1)), *((10.0, said(state, 2)) for state in others)]
    assert verdict_on(*members, (10, said(latest, 20))) is latest
    assert verdict_on((None, said(latest, 20)), *members[1:]) is latest


def test_a_merge_does_not_bring_a_revoked_consent_back() -> None:
    """Not with a side that granted, before or after, nor with one that has expired."""
    assert verdict_on((None, said(State.GRANTED, 5)), (10, said(State.REVOKED, 1))) is State.REVOKED
    assert verdict_on((None, said(State.REVOKED, 1)), (10, said(State.GRANTED, 5))) is State.REVOKED


def test_consent_survives_a_merge_with_somebody_who_said_nothing() -> None:
    """Each login from a new browser is such a merge; it must not ask again."""
    granted_as_one = [(None, said(State.DENIED, 1)), (10.0, said(State.GRANTED, 20))]
    assert verdict_on(*granted_as_one) is State.GRANTED
    query = Query((Member("a"), Member("u", at(10)), Member("new", at(30))), ("p",))
    stood = {"a": {"p": granted_as_one[0][1]}, "u": {"p": granted_as_one[1][1]}}
    assert evaluate(query, stood, Policy("v", {"p": purpose()}), NOW).verdicts[0].allowed


def test_a_later_merge_is_restrictive_about_what_it_brings() -> None:
    """An answer given between two merges stands for its side only, and can be refused by the other."""
    members = [(None, said(State.DENIED, 1)), (10.0, said(State.GRANTED, 20))]
    assert verdict_on(*members, (30, said(State.OBJECTED, 15))) is State.OBJECTED
    assert verdict_on(*members, (30, said(State.GRANTED, 15))) is State.GRANTED


def test_an_answer_at_the_moment_of_the_merge_counts_as_before_it() -> None:
    """Where clocks cannot tell, the restrictive reading holds."""
    assert verdict_on((None, said(State.DENIED, 10)), (10, said(State.GRANTED, 10))) is State.DENIED


@given(answers=answers, stricter=st.sampled_from(REFUSALS))
def test_a_refusal_now_stands_for_the_whole_person(
    answers: list[tuple[datetime | None, Standing]], stricter: State
) -> None:
    """Whatever was said and merged before, and under whichever member it is said."""
    for index in range(len(answers)):
        since = [*answers[:index], (answers[index][0], said(stricter, 900)), *answers[index + 1 :]]
        assert not verdict("p", purpose(), since, NOW).allowed
    assert not verdict("p", purpose(), [*answers, (at(800), said(stricter, 900))], NOW).allowed


@given(answers=answers, order=st.randoms())
def test_the_order_of_members_does_not_matter(answers: list[tuple[datetime | None, Standing]], order: object) -> None:
    """A person is a set of members."""
    shuffled = list(answers)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert verdict("p", purpose(), shuffled, NOW) == verdict("p", purpose(), answers, NOW)


@given(answers=answers)
def test_a_verdict_is_one_that_somebody_gave(answers: list[tuple[datetime | None, Standing]]) -> None:
    """Combining invents nothing: what stands is one of the answers, and all-granted is granted."""
    standing = combine(answers, NOW)
    assert (standing is None) == (not answers)
    assert standing is None or standing in [one for _, one in answers]
    if answers and all(state_at(one, NOW) is State.GRANTED for _, one in answers):
        assert standing is not None
        assert standing.state is State.GRANTED


@given(ours=answers, theirs=answers)
def test_an_unmerge_equals_never_merged(
    ours: list[tuple[datetime | None, Standing]], theirs: list[tuple[datetime | None, Standing]]
) -> None:
    """A merge moves nothing, so the verdict on one side's members is what it was, whatever the other side says."""

    def person(side: Sequence[tuple[datetime | None, Standing]], name: str) -> Query:
        return Query(tuple(Member(f"{name}{index}", joined) for index, (joined, _) in enumerate(side)), ("p",))

    def stood(side: Sequence[tuple[datetime | None, Standing]], name: str) -> dict[str, dict[str, Standing]]:
        return {f"{name}{index}": {"p": one} for index, (_, one) in enumerate(side)}

    policy = Policy("v", {"p": purpose()})
    alone = evaluate(person(ours, "a"), stood(ours, "a"), policy, NOW)
    beside = evaluate(person(ours, "a"), {**stood(ours, "a"), **stood(theirs, "b")}, policy, NOW)
    assert beside == alone


def test_an_evaluation_keeps_the_order_of_its_purposes_and_the_highest_version() -> None:
    """Verdicts come as they were asked for; the version is the ledger's that was written last."""
    policy = Policy("v", {name: replace(purpose(), id=name) for name in ("a", "b")})
    stood = {
        "m1": {"a": replace(said(State.GRANTED, 1), consent_version=3)},
        "m2": {"b": replace(said(State.DENIED, 1), consent_version=7)},
    }
    found = evaluate(
        Query((Member("m1"), Member("m2", at(5)), Member("m3", at(6))), ("b", "x", "a")), stood, policy, NOW
    )
    assert [(one.purpose, one.allowed, one.state) for one in found.verdicts] == [
        ("b", False, State.DENIED),
        ("x", False, State.UNSPECIFIED),
        ("a", True, State.GRANTED),
    ]
    assert found.consent_version == 7
    assert evaluate(Query((Member("m9"),), ("a",)), stood, policy, NOW).consent_version == 0
