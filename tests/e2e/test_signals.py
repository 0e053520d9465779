"""Consent signals and jurisdictions through Decide and Track: what the browser says holds for the call it came with."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from services.consent.domain.signals.tcf import PublisherTc, SegmentType, TcString
from services.consent.domain.signals.vendors import Vendors
from tests.e2e.people import CALL_S, Person, ranked_person, reason
from tests.unit.consent.signals import encode
from tests.unit.consent.signals.samples import CORE

PERSONAL = ("RANKED", "EXPLORED", "HOLDOUT")
Signals = types_pb.ConsentSignals


def tc_string(*purposes: int, age: timedelta = timedelta(days=1)) -> str:
    """A string that a consent platform wrote then, with consent to the publisher's own use for these purposes."""
    at = (datetime.now(UTC) - age).replace(microsecond=0)
    return encode.tc(
        TcString(
            core=replace(CORE, created=at, last_updated=at),
            disclosed_vendors=Vendors(2, bits=0b100),
            publisher=PublisherTc(purposes, (), 0, (), ()),
            order=(SegmentType.DISCLOSED_VENDORS, SegmentType.PUBLISHER_TC),
        )
    )


async def decided(person: Person, signals: Signals, *, request_id: str = "") -> tuple[str, events_pb.ConsentBasis]:
    """Why the answer is what it is, and the consent that the log says it rests on; it replays to the same."""
    answer = (await person.decide(consent_signals=signals, request_id=request_id)).decisions[0]
    stub, name = person.services.decision, answer.decision_id
    logged = await stub.GetDecision(decision_pb.GetDecisionRequest(decision_id=name), timeout=CALL_S)
    replayed = await stub.Replay(decision_pb.ReplayRequest(decision_id=name), timeout=CALL_S)
    assert replayed.identical, replayed.differences
    return reason(answer), logged.decision.consent


async def tracked(person: Person, kind: str, signals: Signals, **more: Any) -> str:
    """What became of an event."""
    event = feedback_pb.TrackedEvent(
        event_id=uuid.uuid4().hex, type=kind, subject=person.subject, consent_signals=signals, **more
    )
    answer = await person.services.feedback.Track(feedback_pb.TrackRequest(events=[event]), timeout=CALL_S)
    return feedback_pb.TrackStatus.Name(answer.results[0].status).removeprefix("TRACK_STATUS_")


async def test_a_tcf_string_grants_to_whom_nobody_asked_and_nothing_more(person: Person) -> None:
    """Purposes 1, 5 and 6 for the publisher; less than that, an old one or a broken one, and the default answers."""
    why, basis = await decided(person, Signals(tc_string=tc_string(1, 5, 6)))
    assert why in PERSONAL
    assert (basis.signal, basis.signal_reason) == ("tc_string", "CONSENTED")
    for text, told in (
        (tc_string(1, 5), "PURPOSE_NOT_CONSENTED"),
        (tc_string(1, 5, 6, age=timedelta(days=500)), "TOO_OLD"),
        (tc_string(1, 5, 6)[:-3], "MALFORMED"),
    ):
        why, basis = await decided(person, Signals(tc_string=text))
        assert (why, basis.signal, basis.signal_reason) == ("DEFAULT/NO_CONSENT", "tc_string", told)
    assert (await decided(person, Signals()))[0] == "DEFAULT/NO_CONSENT"


async def test_a_string_never_undoes_what_the_person_took_back(willing: Person) -> None:
    """After Revoke the ledger has an answer, and no string counts against it."""
    await willing.revoke()
    why, basis = await decided(willing, Signals(tc_string=tc_string(1, 5, 6), jurisdiction="us-ca"))
    assert (why, basis.signal) == ("DEFAULT/NO_CONSENT", "")


@pytest.mark.parametrize(
    ("signals", "signal"),
    [
        (Signals(gpc="1"), "gpc"),
        (Signals(gpc="1", jurisdiction="us-ca"), "gpc"),
        (Signals(do_not_personalize=True), "do_not_personalize"),
        (Signals(usp="1YYN"), "usp"),
    ],
)
async def test_an_objection_by_signal_wins_over_consent(willing: Person, signals: Signals, signal: str) -> None:
    """For the call it came with; the next one without it is personalized as before."""
    why, basis = await decided(willing, signals)
    assert (why, basis.do_not_personalize, basis.signal) == ("DEFAULT/DO_NOT_PERSONALIZE", True, signal)
    assert (await decided(willing, Signals()))[0] in PERSONAL


async def test_the_jurisdiction_decides_about_whom_nobody_asked(person: Person) -> None:
    """Opt-out: personalized until somebody objects. Opt-in, unknown, unsaid: not without consent."""
    assert (await decided(person, Signals(jurisdiction="us-ca")))[0] in PERSONAL
    assert (await decided(person, Signals(jurisdiction="us-ca", gpc="1")))[0] == "DEFAULT/DO_NOT_PERSONALIZE"
    for place in ("eu", "atlantis", ""):
        assert (await decided(person, Signals(jurisdiction=place)))[0] == "DEFAULT/NO_CONSENT"


async def test_a_retry_under_an_old_request_id_is_judged_by_its_own_signals(willing: Person) -> None:
    """And by the ledger of its moment: after Revoke it gets the default, whatever came with the first call."""
    somebody = await ranked_person(willing.services)
    request_id = uuid.uuid4().hex
    first = (await somebody.decide(request_id=request_id)).decisions[0]
    objecting = (await somebody.decide(request_id=request_id, consent_signals=Signals(gpc="1"))).decisions[0]
    assert (objecting.decision_id, reason(objecting)) == (first.decision_id, "DEFAULT/DO_NOT_PERSONALIZE")
    again = (await somebody.decide(request_id=request_id)).decisions[0]
    assert (reason(again), again.slate) == (reason(first), first.slate)
    await somebody.revoke()
    revoked = (await somebody.decide(request_id=request_id)).decisions[0]
    assert (revoked.decision_id, reason(revoked)) == (first.decision_id, "DEFAULT/NO_CONSENT")
    assert not revoked.exposure_token


async def test_what_is_collected_hangs_on_the_signals_too(person: Person, willing: Person) -> None:
    """Dropped, stored without the person where the type says so, or accepted: by string, place and objection."""
    click = {"item_ids": ["kite"]}
    assert await tracked(person, "click", Signals(), **click) == "DROPPED_NO_CONSENT"
    assert await tracked(person, "click", Signals(jurisdiction="us-ca"), **click) == "ACCEPTED"
    assert await tracked(person, "click", Signals(tc_string=tc_string(1, 8)), **click) == "ACCEPTED"
    assert await tracked(person, "click", Signals(tc_string=tc_string(1)), **click) == "DROPPED_NO_CONSENT"
    assert await tracked(willing, "click", Signals(tc_string="broken"), **click) == "DROPPED_NO_CONSENT"
    cta = {"properties": {"cta": {"string_value": "newsletter"}}}
    assert await tracked(willing, "cta_clicked", Signals(), **cta) == "ACCEPTED"
    assert await tracked(willing, "cta_clicked", Signals(gpc="1"), **cta) == "ANONYMIZED"
    assert await tracked(person, "cta_clicked", Signals(), **cta) == "ANONYMIZED"
