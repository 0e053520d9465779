"""What stands follows from the ledger's facts and nothing else."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition, RecordedEvent
from services.consent import wire
from services.consent.domain.checks import CLOCK_SKEW
from services.consent.domain.commands import (
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
from services.consent.domain.ledger import NEVER, Answer, Collection, State, fold
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, Purpose
from services.consent.domain.verdicts import state_at

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def purpose(name: str, version: int = 1, basis: str = CONSENT) -> Purpose:
    return Purpose(name, f"what {name} is for", basis, "owner", 30, version)


POLICY = Policy("policy1", {name: purpose(name, version=2) for name in ("ads", "measurement")}, controller="a shop")
VIEW = View(POLICY, {}, 0, NOW)


def collected(at: datetime) -> Collection:
    return Collection(at, 1, "policy1")


def answer(state: State, minute: int, *, collected_minute: int | None = None) -> Answer:
    """An answer recorded at a minute, collected then or earlier."""
    at = NOW + timedelta(minutes=minute)
    collection = None if state is State.REVOKED else collected(at)
    if collection is not None and collected_minute is not None:
        collection = replace(collection, collected_at=NOW + timedelta(minutes=collected_minute))
    return Answer("ads", state, minute, at, collection=collection)


def problem(command: RecordCommand | RevokeCommand, view: View = VIEW) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        _ = record(command, view) if isinstance(command, RecordCommand) else revoke(command, view)
    assert caught.value.kind is Kind.INVALID
    return caught.value


states = st.sampled_from([State.GRANTED, State.DENIED, State.OBJECTED, State.REVOKED])


@given(said=st.lists(states, min_size=1, max_size=10))
def test_the_last_answer_stands(said: list[State]) -> None:
    """Said one after the other, the last is what counts, and the version that of the ledger."""
    standing = fold([answer(state, minute) for minute, state in enumerate(said, 1)])["ads"]
    assert standing.state is said[-1]
    assert standing.consent_version == len(said)


def test_an_old_grant_does_not_undo_a_revocation() -> None:
    """An import of what was collected earlier stays in the history and changes nothing."""
    revoked = fold([answer(State.GRANTED, 1), answer(State.REVOKED, 5)])["ads"]
    imported = fold([answer(State.GRANTED, 1), answer(State.REVOKED, 5), answer(State.GRANTED, 9, collected_minute=3)])
    assert imported["ads"] == replace(revoked, consent_version=9)
    later = fold([answer(State.REVOKED, 5), answer(State.GRANTED, 9, collected_minute=6)])["ads"]
    assert later.state is State.GRANTED
    assert later.answered_at == NOW + timedelta(minutes=6)


@given(said=st.lists(st.tuples(states, st.integers(0, 60)), min_size=1, max_size=8))
def test_a_clock_that_goes_back_loses_no_answer(said: list[tuple[State, int]]) -> None:
    """What is said now is the last, whatever the database's clock did meanwhile."""
    answers = [replace(answer(state, minute), version=version) for version, (state, minute) in enumerate(said, 1)]
    standing = fold(answers)["ads"]
    assert standing.state is said[-1][0]
    assert standing.answered_at == max(one.recorded_at for one in answers)


@given(
    state=states,
    expires=st.booleans(),
    texts=st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5)),
    collected_minute=st.integers(-60, 0),
)
def test_an_answer_survives_the_log(
    state: State, expires: bool, texts: tuple[str, str, str], collected_minute: int
) -> None:
    """Encoded and decoded it is the same, so that what stands can be rebuilt from the log."""
    given = answer(state, 1, collected_minute=collected_minute)
    if given.collection is not None:
        notice, language, mechanism = texts
        collection = replace(given.collection, notice_version=notice, notice_language=language, mechanism=mechanism)
        given = replace(given, collection=collection)
    if state is State.GRANTED and expires:
        given = replace(given, expires_at=NOW + HOUR)
    event_type, payload = wire.encode_answer(given)
    event = RecordedEvent(
        "id", event_type, payload, given.recorded_at, "m", "", "consent-m", given.version, LogPosition(1, 1, 1)
    )
    assert wire.decode_answer(event) == given


def test_recording_appends_one_fact_an_answer() -> None:
    """Each with the version of purpose and policy it was given under; only consent expires."""
    command = RecordCommand("r", (("ads", State.GRANTED), ("measurement", State.DENIED)), expires_at=NOW + HOUR)
    granted, denied = record(command, replace(VIEW, version=3))
    assert (granted.version, denied.version) == (4, 5)
    assert (granted.expires_at, denied.expires_at) == (NOW + HOUR, NEVER)
    assert granted.collection == Collection(NOW, 2, "policy1")


def test_a_clock_a_little_ahead_is_now() -> None:
    """A backend whose clock is two seconds ahead is not refused, and gains nothing."""
    (recorded,) = record(RecordCommand("r", (("ads", State.GRANTED),), collected_at=NOW + CLOCK_SKEW), VIEW)
    assert recorded.collection is not None
    assert recorded.collection.collected_at == NOW


@pytest.mark.parametrize(
    ("changes", "reason", "field", "text"),
    [
        (
            {"answers": (("ads", State.GRANTED), ("fun", State.GRANTED))},
            "PURPOSE_UNKNOWN",
            "answers[1].purpose",
            "ads, m",
        ),
        ({"answers": (("ads", State.GRANTED),) * 2}, "PURPOSE_REPEATED", "answers[1].purpose", "twice"),
        ({"answers": (("ads", State.REVOKED),)}, "STATE_NOT_RECORDABLE", "answers[0].state", "Revoke"),
        ({"answers": (("ads", State.EXPIRED),)}, "STATE_NOT_RECORDABLE", "answers[0].state", "expires_at"),
        ({"answers": (("ads", State.UNSPECIFIED),)}, "STATE_NOT_RECORDABLE", "answers[0].state", "GRANTED"),
        ({"answers": ()}, "ANSWERS_MISSING", "answers", "at least one"),
        ({"collected_at": NOW + HOUR}, "COLLECTED_IN_FUTURE", "collected_at", "future"),
        ({"expires_at": NOW}, "EXPIRES_IN_PAST", "expires_at", "past"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_the_remedy(
    changes: dict[str, object], reason: str, field: str, text: str
) -> None:
    """A typed refusal that names the field and says what is allowed."""
    error = problem(replace(RecordCommand("r", (("ads", State.GRANTED),)), **changes))  # type: ignore[arg-type]
    assert error.reason == reason
    assert error.problems[0].field == field
    assert text in error.problems[0].problem


def test_all_problems_are_told_at_once() -> None:
    """A form is mended in one go."""
    error = problem(RecordCommand("r", (("fun", State.REVOKED),), collected_at=NOW + HOUR, expires_at=NOW - HOUR))
    assert [one.field for one in error.problems] == [
        "answers[0].purpose",
        "answers[0].state",
        "collected_at",
        "expires_at",
    ]


def test_revoking_everything_leaves_a_tombstone_a_purpose() -> None:
    """Also for what was never granted: a revocation is a fact, not an absence."""
    revoked = revoke(RevokeCommand("r"), VIEW)
    assert [(one.purpose, one.state, one.version) for one in revoked] == [
        ("ads", State.REVOKED, 1),
        ("measurement", State.REVOKED, 2),
    ]
    assert problem(RevokeCommand("r", ("fun",))).problems[0].field == "purposes[0]"


def test_revoking_where_nothing_is_declared_is_refused() -> None:
    """An empty success would be taken for a revocation."""
    with pytest.raises(ServiceError, match="apply a site bundle") as caught:
        revoke(RevokeCommand("r"), replace(VIEW, policy=Policy()))
    assert caught.value.reason == "NO_PURPOSES"


def test_a_digest_tells_commands_apart() -> None:
    """Anything that makes a difference to the ledger does; the order of purposes to revoke does not."""
    base = RecordCommand("r", (("ads", State.GRANTED),))
    others = [
        replace(base, answers=(("ads", State.DENIED),)),
        replace(base, notice_version="x"),
        replace(base, notice_language="x"),
        replace(base, mechanism="x"),
        replace(base, collected_at=NOW),
        replace(base, expires_at=NOW),
        replace(base, source_hash="x"),
        replace(base, jurisdiction="x"),
        replace(base, do_not_personalize=True),
    ]
    digests = {digest_of("m", base), digest_of("other", base), digest_of("m", RevokeCommand("r"))}
    digests |= {digest_of("m", one) for one in others}
    assert len(digests) == 12
    assert digest_of("m", RevokeCommand("r", ("a", "b"))) == digest_of("m", RevokeCommand("s", ("b", "a", "b")))


@pytest.mark.parametrize("who", [Who(), Who("m" * 26, (object(),))])  # type: ignore[arg-type]
def test_one_person_is_meant(who: Who) -> None:
    """Neither or both of pseudonym and identities is refused."""
    with pytest.raises(ServiceError, match="subject: give subject_id or identities"):
        check_who(who)


def test_that_a_grant_ran_out_is_said_once_and_changes_nothing() -> None:
    """The fact is for readers of the ledger; what stands counts as expired by itself, before and after."""
    granted = replace(answer(State.GRANTED, 1), expires_at=NOW + HOUR)
    view = View(POLICY, fold([granted]), 1, NOW + 2 * HOUR)
    (expiry,) = expire(view)
    assert (expiry.purpose, expiry.state, expiry.version, expiry.expires_at) == ("ads", State.EXPIRED, 2, NOW + HOUR)
    after = fold([granted, expiry])
    assert expire(replace(view, standings=after)) == ()
    assert state_at(after["ads"], view.now) is state_at(view.standings["ads"], view.now) is State.EXPIRED
    assert after["ads"].consent_version == 2
    assert expire(replace(view, now=NOW)) == ()


def test_a_grant_that_is_renewed_runs_out_anew() -> None:
    """What was recorded is the end of one grant, not of the purpose."""
    granted = replace(answer(State.GRANTED, 1), expires_at=NOW + HOUR)
    expiry = Answer("ads", State.EXPIRED, 2, NOW + 2 * HOUR, expires_at=NOW + HOUR)
    renewed = replace(answer(State.GRANTED, 180), version=3, expires_at=NOW + 4 * HOUR)
    standings = fold([granted, expiry, renewed])
    assert expire(View(POLICY, standings, 3, NOW + 3 * HOUR)) == ()
    assert [one.version for one in expire(View(POLICY, standings, 3, NOW + 5 * HOUR))] == [4]
