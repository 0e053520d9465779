"""Under which notice, where and when an answer can be recorded: consent must show it, a refusal need not."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import ServiceError
from services.consent.domain.commands import RecordCommand, View, record
from services.consent.domain.ledger import State
from services.consent.domain.notices import Notice
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, Purpose
from services.consent.domain.regimes import Jurisdiction, Regime

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
RETIRED_AT = NOW - 10 * DAY


def purpose(name: str, *, personalizes: bool = False) -> Purpose:
    return Purpose(name, f"what {name} is for", CONSENT, "owner", 30, 1, personalizes)


POLICY = Policy(
    "policy1",
    {"ads": purpose("ads", personalizes=True), "feed": purpose("feed", personalizes=True), "count": purpose("count")},
    {
        "old": Notice("old", ("en",), ("ads", "count"), retired_at=RETIRED_AT),
        "new": Notice("new", ("en", "de-AT"), ("ads", "count")),
    },
    {"eu": Jurisdiction("eu", Regime.OPT_IN)},
    "a shop",
)
VIEW = View(POLICY, {}, 0, NOW)
GRANT = RecordCommand("r", (("ads", State.GRANTED),), notice_version="new", notice_language="en")


def reason(command: RecordCommand, view: View = VIEW) -> str:
    with pytest.raises(ServiceError) as caught:
        record(command, view)
    assert caught.value.problems[0].problem in caught.value.message
    return f"{caught.value.reason} {caught.value.problems[0].field}"


def test_consent_needs_somebody_who_answers_for_the_data() -> None:
    """Nobody can agree to what nobody answers for; saying no is always possible."""
    nobodys = replace(VIEW, policy=replace(POLICY, controller=""))
    with pytest.raises(ServiceError) as caught:
        record(GRANT, nobodys)
    assert caught.value.reason == "CONTROLLER_UNKNOWN"
    assert "site.yaml" in caught.value.message
    assert record(replace(GRANT, answers=(("ads", State.DENIED),)), nobodys)[0].state is State.DENIED


def test_the_answer_keeps_how_it_was_collected() -> None:
    """Notice, language, mechanism, source, place, time and end are what a receipt is made of."""
    command = replace(
        GRANT,
        mechanism="banner",
        source_hash="a" * 64,
        jurisdiction="eu",
        collected_at=NOW - DAY,
        expires_at=NOW + DAY,
        notice_language="DE-at",
    )
    (answer,) = record(command, VIEW)
    kept = answer.collection
    assert kept is not None
    assert (kept.notice_version, kept.notice_language, kept.mechanism) == ("new", "DE-at", "banner")
    assert (kept.source_hash, kept.jurisdiction) == ("a" * 64, "eu")
    assert (kept.collected_at, answer.expires_at) == (NOW - DAY, NOW + DAY)
    assert (kept.purpose_version, kept.policy_version) == (1, "policy1")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"notice_version": ""}, "NOTICE_REQUIRED notice_version"),
        ({"notice_version": "newest"}, "NOTICE_UNKNOWN notice_version"),
        ({"notice_version": "old"}, "NOTICE_RETIRED notice_version"),
        ({"notice_version": "old", "collected_at": RETIRED_AT}, "NOTICE_RETIRED notice_version"),
        ({"notice_language": ""}, "NOTICE_LANGUAGE_REQUIRED notice_language"),
        ({"notice_language": "fr"}, "NOTICE_LANGUAGE_UNKNOWN notice_language"),
        ({"answers": (("count", State.DENIED), ("feed", State.GRANTED))}, "PURPOSE_NOT_NAMED answers[1].purpose"),
        ({"jurisdiction": "atlantis"}, "JURISDICTION_UNKNOWN jurisdiction"),
        ({"collected_at": NOW + DAY}, "COLLECTED_IN_FUTURE collected_at"),
        ({"do_not_personalize": True}, "ANSWERS_CONTRADICT answers[0].state"),
        ({"answers": ()}, "ANSWERS_MISSING answers"),
    ],
)
def test_consent_that_cannot_have_been_given_is_refused(change: dict[str, object], expected: str) -> None:
    """Each is a typed refusal that names the field."""
    assert reason(replace(GRANT, **change)) == expected  # type: ignore[arg-type]


def test_consent_given_before_the_notice_was_retired_is_recorded() -> None:
    """An import tells of a time when people were still shown it."""
    command = replace(GRANT, notice_version="old", collected_at=RETIRED_AT - DAY)
    assert record(command, VIEW)[0].state is State.GRANTED


@pytest.mark.parametrize("state", [State.DENIED, State.OBJECTED])
def test_saying_no_needs_no_notice(state: State) -> None:
    """No notice, an unknown one, a retired one, an unknown place: the refusal is recorded."""
    for notice in ("", "newest", "old"):
        command = RecordCommand("r", (("feed", state),), notice_version=notice, jurisdiction="atlantis")
        assert record(command, VIEW)[0].state is state


def test_a_site_without_notices_asks_for_none() -> None:
    """What a caller sends is kept as it is: so it was before notices could be declared."""
    view = replace(VIEW, policy=replace(POLICY, notices={}))
    (answer,) = record(replace(GRANT, notice_version="leaflet", notice_language=""), view)
    assert answer.collection is not None
    assert answer.collection.notice_version == "leaflet"


@given(st.dictionaries(st.sampled_from(["ads", "feed", "count"]), st.sampled_from([State.DENIED, State.OBJECTED])))
def test_an_objection_to_personalization_objects_to_all_of_it(others: dict[str, State]) -> None:
    """Every purpose that personalizes is objected to, whatever else is answered, and each purpose once."""
    command = RecordCommand("r", tuple(others.items()), do_not_personalize=True)
    found = record(command, VIEW)
    states = {one.purpose: one.state for one in found}
    assert states == {**others, "ads": State.OBJECTED, "feed": State.OBJECTED}
    assert [one.version for one in found] == list(range(1, len(states) + 1))


def test_an_objection_where_nothing_personalizes_is_no_silent_success() -> None:
    """Nobody may be told that an objection was recorded when there was nothing to record."""
    view = replace(VIEW, policy=replace(POLICY, purposes={"count": purpose("count")}))
    command = RecordCommand("r", (("count", State.OBJECTED),), do_not_personalize=True)
    assert reason(command, view) == "NOTHING_PERSONALIZES do_not_personalize"
