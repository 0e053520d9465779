"""The ledger, the signals of the request and the regime of the place, together: no is never undone."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.consent.domain.ledger import NEVER, Standing, State
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, LEGITIMATE_INTEREST, Purpose
from services.consent.domain.regimes import Jurisdiction, Regime
from services.consent.domain.signals.decoding import RawSignals
from services.consent.domain.signals.mapping import PurposeRule, TcfRule
from services.consent.domain.signals.tcf import TcString
from services.consent.domain.verdicts import Evaluation, Member, Query, Stated, Verdict, evaluate
from tests.unit.consent.signals import encode
from tests.unit.consent.signals.samples import CORE

# A day after the sample strings were made, which hold purposes 1 and 3, feature 1 and no disclosed vendors.
NOW = datetime(2023, 3, 2, 9, tzinfo=UTC)
DAY = timedelta(days=1)
GRANTING = encode.tc(TcString(CORE))
REFUSING = encode.tc(TcString(replace(CORE, purpose_consents=())))
TOO_OLD = encode.tc(TcString(replace(CORE, created=NOW - 900 * DAY, last_updated=NOW - 900 * DAY)))
INVALID = ["", " ", "x", GRANTING[:-1], GRANTING + "A", GRANTING + ".", GRANTING.lower(), "1YNN", "DBABMA~" + GRANTING]

ADS = Purpose(
    "ads",
    "what ads are for",
    CONSENT,
    "owner",
    30,
    1,
    personalizes=True,
    signals=PurposeRule(tcf=TcfRule((1, 3)), us_fields=("SaleOptOut",), usp_opt_out_sale=True, gpc=True),
)
FEED = replace(ADS, id="feed", signals=None, legal_basis=LEGITIMATE_INTEREST)
COUNT = replace(ADS, id="count", signals=None, personalizes=False)
PROFILE = replace(COUNT, id="profile_personalization")
TRAINING = replace(COUNT, id="model_training", signals=PurposeRule())
PURPOSES = {one.id: one for one in (ADS, FEED, COUNT, PROFILE, TRAINING)}
EU = Jurisdiction("eu", Regime.OPT_IN)
CA = Jurisdiction("us-ca", Regime.OPT_OUT, opt_in_purposes=("model_training",), gpc_objects_to=("count",))
POLICY = Policy("p1", PURPOSES, {}, {"eu": EU, "us-ca": CA}, "a shop")


def standing(state: State, *, jurisdiction: str = "", minute: int = 0, expires_at: datetime = NEVER) -> Standing:
    at = NOW - DAY + timedelta(minutes=minute)
    return Standing(state, 1, at, at, expires_at, 1, jurisdiction)


def stated(jurisdiction: str = "", *, do_not_personalize: Any = False, **raw: Any) -> Stated:
    return Stated(RawSignals(**raw), jurisdiction, do_not_personalize)


def verdicts(
    said: Any = None, policy: Any = POLICY, purposes: Any = tuple(PURPOSES), **stood: Any
) -> dict[str, Verdict]:
    return {one.purpose: one for one in evaluation(said, policy, purposes, **stood).verdicts}


def evaluation(said: Stated | None, policy: Policy, purposes: Sequence[str], **stood: Standing) -> Evaluation:
    return evaluate(Query((Member("m"),), tuple(purposes), said), {"m": stood}, policy, NOW)


def allowed(said: Any = None, policy: Any = POLICY, **stood: Any) -> set[str]:
    return {name for name, one in verdicts(said, policy, **stood).items() if one.allowed}


places = st.sampled_from(["", "eu", "us-ca", "atlantis"])
raw_signals = st.builds(
    RawSignals,
    gpc=st.sampled_from(["", "1", "0", "true", " 1"]),
    tc_string=st.sampled_from([GRANTING, REFUSING, TOO_OLD, *INVALID]),
    gpp=st.sampled_from(["", "x", "DBABMA~" + GRANTING, "DBABMA~" + REFUSING]),
    usp=st.sampled_from(["", "1YNN", "1YYN", "1---", "x"]),
)
anything_stated = st.builds(Stated, raw_signals, places, st.booleans())
standings = st.builds(
    standing,
    st.sampled_from([State.GRANTED, State.DENIED, State.REVOKED, State.OBJECTED]),
    jurisdiction=places,
    minute=st.integers(0, 60),
    expires_at=st.sampled_from([NEVER, NOW, NOW + DAY]),
)
policies = st.builds(
    lambda bases, default: replace(
        POLICY,
        purposes={name: replace(one, legal_basis=bases[k]) for k, (name, one) in enumerate(PURPOSES.items())},
        jurisdictions={"eu": replace(EU, is_default=default == "eu"), "us-ca": replace(CA, is_default=default != "eu")},
    ),
    st.lists(st.sampled_from([CONSENT, LEGITIMATE_INTEREST]), min_size=5, max_size=5),
    st.sampled_from(["eu", "us-ca"]),
)


@given(anything_stated, policies, standings)
def test_a_signal_never_undoes_a_refusal(said: Stated, policy: Policy, stood: Standing) -> None:
    """Denied, revoked, objected or run out in the ledger means no, whatever comes with the request, wherever it is."""
    assume(stood.state is not State.GRANTED or stood.expires_at <= NOW)
    assert allowed(said, policy, **dict.fromkeys(PURPOSES, stood)) == set()


@given(
    policies,
    places,
    standings,
    st.sampled_from(["tc_string", "gpp", "usp"]),
    st.text(max_size=40) | st.sampled_from(INVALID),
)
def test_an_invalid_string_never_allows_what_its_absence_would_not(
    policy: Policy, place: str, stood: Standing, signal: str, text: str
) -> None:
    """Malformed, cut off, padded, of another kind: it can only take away."""
    with_it = evaluation(stated(place, **{signal: text}), policy, tuple(PURPOSES), ads=stood)
    assume(with_it.problems or not text)
    without = allowed(stated(place), policy, ads=stood)
    assert {one.purpose for one in with_it.verdicts if one.allowed} <= without


@given(anything_stated, standings)
def test_gpc_and_do_not_personalize_only_take_away(said: Stated, stood: Standing) -> None:
    """An objection never opens anything."""
    bare = replace(said, raw=replace(said.raw, gpc=""), do_not_personalize=False)
    assert allowed(said, ads=stood) <= allowed(bare, ads=stood)


@given(st.sampled_from([State.OBJECTED, State.DENIED, State.REVOKED]), policies)
def test_no_regime_overrides_what_the_person_said(state: State, policy: Policy) -> None:
    """Where everything is allowed until somebody objects, somebody who did is heard."""
    assert allowed(stated("us-ca"), policy, **dict.fromkeys(PURPOSES, standing(state))) == set()


def test_what_an_unasked_person_allows_hangs_on_the_place() -> None:
    """Opt-in: legitimate interests alone. Opt-out: all but what needs consent there too. Unknown: opt-in."""
    everywhere = {"feed"}
    assert allowed(stated("eu")) == everywhere
    assert allowed(stated("us-ca")) == set(PURPOSES) - {"model_training"}
    assert allowed(stated("atlantis")) == allowed(stated()) == allowed() == everywhere
    default = replace(POLICY, jurisdictions={"us-ca": replace(CA, is_default=True)})
    assert allowed(policy=default) == allowed(stated("us-ca"))
    assert allowed(stated("atlantis"), default) == everywhere


def test_the_place_of_the_newest_answer_holds_where_the_call_names_none() -> None:
    """The call's own word comes first, then what was last recorded, then the default."""
    stood = {
        "ads": standing(State.DENIED, jurisdiction="eu", minute=1),
        "feed": standing(State.DENIED, jurisdiction="us-ca", minute=2),
        "model_training": standing(State.DENIED, minute=3),
    }
    assert allowed(**stood) == {"count", "profile_personalization"}
    assert allowed(stated("eu"), **stood) == set()


def test_a_string_grants_only_where_the_ledger_has_no_answer() -> None:
    """The verdict says which signal decided, and why."""
    ads = verdicts(stated(tc_string=GRANTING))["ads"]
    assert ads == Verdict("ads", True, State.GRANTED, "tc_string", "CONSENTED")
    denied = verdicts(stated(tc_string=GRANTING), ads=standing(State.DENIED))["ads"]
    assert denied == Verdict("ads", False, State.DENIED)
    over = verdicts(stated(tc_string=GRANTING), ads=standing(State.GRANTED, expires_at=NOW))["ads"]
    assert over == Verdict("ads", False, State.EXPIRED)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (stated(gpc="1"), (State.OBJECTED, "gpc", "GLOBAL_PRIVACY_CONTROL")),
        (stated(do_not_personalize=True), (State.OBJECTED, "do_not_personalize", "DO_NOT_PERSONALIZE")),
        (stated(usp="1YYN"), (State.OBJECTED, "usp", "OPTED_OUT")),
        (stated(tc_string=REFUSING), (State.DENIED, "tc_string", "PURPOSE_NOT_CONSENTED")),
        (stated(tc_string=TOO_OLD), (State.DENIED, "tc_string", "TOO_OLD")),
        (stated(tc_string="x"), (State.DENIED, "tc_string", "MALFORMED")),
        (stated(gpp="x"), (State.DENIED, "gpp", "MALFORMED")),
        (stated(gpc="0", tc_string=GRANTING, usp="1YNN"), (State.GRANTED, "", "")),
    ],
)
def test_a_signal_that_refuses_wins_over_consent_in_the_ledger(said: Stated, verdict: tuple[State, str, str]) -> None:
    """For this request; the ledger stays as it is."""
    found = verdicts(said, ads=standing(State.GRANTED))["ads"]
    assert (found.state, found.signal, found.signal_reason) == verdict
    assert found.allowed is (verdict[0] is State.GRANTED)


def test_an_objection_in_the_ledger_is_told_before_a_denial_by_a_string() -> None:
    """The stricter of the two is what the person is told."""
    assert verdicts(stated(tc_string="x"), ads=standing(State.OBJECTED))["ads"] == Verdict("ads", False, State.OBJECTED)


@pytest.mark.parametrize("value", ["", "0", "true", " 1", "1 ", "11", "１"])
def test_sec_gpc_is_exactly_1(value: str) -> None:
    """Anything else is no signal."""
    assert verdicts(stated(gpc=value), ads=standing(State.GRANTED))["ads"].allowed


def test_gpc_objects_to_what_the_site_and_the_place_say() -> None:
    """The purpose's rule everywhere, the jurisdiction's list there, the default mapping where nothing is declared."""
    everything = dict.fromkeys(PURPOSES, standing(State.GRANTED))
    assert set(PURPOSES) - allowed(stated("eu", gpc="1"), **everything) == {"ads", "profile_personalization"}
    california = set(PURPOSES) - allowed(stated("us-ca", gpc="1"), **everything)
    assert california == {"ads", "profile_personalization", "count"}
    # Where nobody knows the place, whatever is an objection anywhere is one.
    assert set(PURPOSES) - allowed(stated("atlantis", gpc="1"), **everything) == california
    assert set(PURPOSES) - allowed(stated(gpc="1"), **everything) == california


def test_do_not_personalize_objects_to_all_that_personalizes_and_to_nothing_else() -> None:
    """Counting, for one, goes on."""
    everything = dict.fromkeys(PURPOSES, standing(State.GRANTED))
    assert set(PURPOSES) - allowed(stated(do_not_personalize=True), **everything) == {"ads", "feed"}


def test_what_is_wrong_with_the_strings_is_told_once_a_query() -> None:
    """By kind, for a counter; never the string."""
    said = stated(tc_string="x", gpp=" ", usp="1YNN", gpc="maybe")
    found = dict(evaluation(said, POLICY, ["ads", "count"]).problems)
    assert sorted(found) == ["gpp", "tc_string"]
    assert evaluation(stated(tc_string=GRANTING), POLICY, ["ads"]).problems == ()


def test_a_purpose_that_is_not_declared_is_allowed_by_nothing() -> None:
    """No string and no regime opens what the site never named."""
    found = verdicts(stated("us-ca", tc_string=GRANTING), purposes=["fun"])["fun"]
    assert found == Verdict("fun", False, State.UNSPECIFIED)
