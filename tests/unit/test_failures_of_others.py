"""Failures seen in other systems, kept away from this one: those that pure functions can show.

Each test names the system and what it did, as its public source, issue or documentation says. tests/e2e/
test_failures_of_others.py has those that need running services.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.chassis.events import LogPosition, RecordedEvent
from services.chassis.gather import Gatherer, Load
from services.consent import wire
from services.consent.domain.ledger import NEVER, Answer, Collection, Standing, State
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, Purpose
from services.consent.domain.signals.decoding import RawSignals, decode
from services.consent.domain.signals.effect import purposes_from
from services.consent.domain.signals.errors import ConsentStringError, Problem
from services.consent.domain.signals.mapping import PurposeRule, SignalMapping, TcfRule
from services.consent.domain.signals.tcf import TcString, decode_tc
from services.consent.domain.verdicts import Member, Query, Standings, evaluate
from tests.unit.consent.signals import encode, samples

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=300)
POLICY = Policy("v", {"p": Purpose("p", "what it is for", CONSENT, "owner", 30, 1)}, controller="a shop")
MAPPING = SignalMapping({"p": PurposeRule(tcf=TcfRule((1,)), gpc=True)})


def said(state: State, day: int, *, expires_at: datetime = NEVER) -> Standing:
    at = START + timedelta(days=day)
    return Standing(state, 1, at, at, expires_at, 1)


def is_allowed(standings: Standings, members: Sequence[Member]) -> bool:
    return evaluate(Query(tuple(members), ("p",)), standings, POLICY, NOW).verdicts[0].allowed


def merged(known: str, joining: str, *, on_day: int) -> list[Member]:
    return [Member(known), Member(joining, START + timedelta(days=on_day))]


def by_signal(**raw: str) -> State:
    return purposes_from(decode(RawSignals(**raw)), MAPPING, NOW)["p"].state


@pytest.mark.parametrize(("known", "joining"), [("account", "browser"), ("browser", "account")])
def test_unomi_forgets_a_revocation_and_a_merge_brings_the_consent_back(known: str, joining: str) -> None:
    """Apache Unomi: a revocation leaves nothing behind, and the merge copies the other profile's grant into the gap.

    Profile.setConsent with REVOKED removes the entry, and ProfileServiceImpl.mergeProfiles puts in what is missing.

    Here a revocation is a fact with a place of its own, and at a merge the most restrictive answer stands.
    """
    standings = {"account": {"p": said(State.REVOKED, 20)}, "browser": {"p": said(State.GRANTED, 10)}}
    assert not is_allowed(standings, merged(known, joining, on_day=30))
    assert not is_allowed({**standings, "browser": {"p": said(State.GRANTED, 25)}}, merged(known, joining, on_day=30))


def test_consent_lost_at_a_merge() -> None:
    """A merge that keeps the surviving profile's fields loses what only the other side had agreed to.

    The person is asked again at each login, until they agree to anything.

    Here facts stay under their member and readers combine them: nothing can be left behind.
    """
    standings = {"browser": {"p": said(State.GRANTED, 10)}}
    assert is_allowed(standings, merged("account", "browser", on_day=30))
    assert is_allowed(standings, merged("browser", "account", on_day=30))
    assert not is_allowed(standings, [Member("account")]), "apart again, the account has its own answers and no others"


def test_never_expires_is_a_value_and_not_the_absence_of_one() -> None:
    """Apache Unomi's merge asks each consent whether its revokeDate is past; one without an end has null there.

    Here a grant without an end has the latest time there is: it is compared like any other, in memory and on the wire.
    """
    forever = said(State.GRANTED, 0)
    assert forever.expires_at == NEVER
    assert not forever.has_run_out(NEVER - timedelta(seconds=1))
    assert is_allowed({"a": {"p": forever}}, [Member("a")])
    assert not is_allowed({"a": {"p": replace(forever, expires_at=NOW)}}, [Member("a")])
    fact = Answer("p", State.GRANTED, 1, START, NEVER, Collection(START, 1, "v"))
    event_type, payload = wire.encode_answer(fact)
    event = RecordedEvent("id", event_type, payload, START, "m", "", "consent-m", 1, LogPosition(1, 1, 1))
    assert wire.decode_answer(event).expires_at == NEVER


@pytest.mark.parametrize("nothing", ["", " ", ".", "..", "=", "AAAA", "\0"])
def test_a_string_that_says_nothing_grants_nothing(nothing: str) -> None:
    """The TCF decoder on PyPI (iab-tcf) pads whatever it gets, reads bits when asked for them, and so takes `''`.

    What is not of the alphabet is passed over by Python's urlsafe_b64decode under it.

    Here a string is valid as a whole or it is refused; only what is empty counts as no signal, which grants nothing.
    """
    with pytest.raises(ConsentStringError):
        decode_tc(nothing)
    assert by_signal(tc_string=nothing) is not State.GRANTED
    assert (decode(RawSignals(tc_string=nothing)).tc is None) == (nothing == "")


def test_noise_in_a_string_is_not_passed_over() -> None:
    """The same decoder, with a character put into a string that would grant."""
    valid = encode.tc(TcString(samples.CORE))
    assert not isinstance(decode(RawSignals(tc_string=valid)).tc, Problem)
    for noise in (" ", "\n", "=", "%", "ä"):
        assert isinstance(decode(RawSignals(tc_string=valid[:9] + noise + valid[9:])).tc, Problem)


@pytest.mark.parametrize("value", ["0", "true", "yes", "1 ", " 1", "01", "1,1", "+1", "1.0", "１"])
def test_only_exactly_1_is_global_privacy_control(value: str) -> None:
    """A header that is read as truthy, trimmed or parsed as a number makes an objection of `0`, ` 1` or `１`.

    The W3C draft of Global Privacy Control knows one value of Sec-GPC.

    Here `1` is an objection, and anything else is no signal at all.
    """
    assert by_signal(gpc="1") is State.OBJECTED
    assert by_signal(gpc=value) is State.UNSPECIFIED


async def test_a_cancelled_call_does_not_shift_the_replies_of_its_batch() -> None:
    """redis-py up to 4.5.3 (issues 2624 and 2665, March 2023): a cancelled command left its reply on the connection.

    From then on every caller was told what the one before had asked for, which was another user's data.

    Here a caller that leaves takes its place with it; tests/e2e/test_cancelled_reads.py does it by the thousand.
    """
    sent, answer = asyncio.Event(), asyncio.Event()

    async def send(queries: list[str]) -> list[str]:
        sent.set()
        await answer.wait()
        return [f"of {query}" for query in queries]

    gatherer: Gatherer[str, str] = Gatherer(send, Load(), name="test")
    asking = [asyncio.ensure_future(gatherer(name)) for name in ("ann", "ben", "cem")]
    await sent.wait()
    asking[0].cancel()
    answer.set()
    assert await asyncio.gather(*asking[1:]) == ["of ben", "of cem"]
