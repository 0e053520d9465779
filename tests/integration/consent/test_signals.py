"""Notices, jurisdictions, signals and expiry over gRPC and Postgres."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_service_pb2 as pb
from prometheus_client import REGISTRY

from services.chassis.errors import Kind
from services.chassis.events import ORIGIN
from services.chassis.eventstore import PostgresEventStore
from services.chassis.visitors import SIGNAL_CHARACTERS_MAX
from services.consent.domain.signals.bits import CHARACTERS_MAX
from services.consent.subscribers import Expiries
from tests.integration.consent.conftest import purpose
from tests.integration.consent.rights_world import CONTROLLER
from tests.integration.consent.test_ledger import ALICE, BOB, member, refusal, who
from tests.waiting import eventually

ADS = purpose("ads")
ADS.personalizes = True
ADS.signals.CopyFrom(
    pb.SignalRule(tcf=pb.TcfRule(purposes=[1, 3]), us_fields=["SaleOptOut"], usp_opt_out_sale=True, gpc=True)
)
NOTICE = pb.Notice(version="n1", languages=["en", "de"], purposes=["ads", "measurement"])
PLACES = [
    pb.Jurisdiction(id="eu", regime=pb.REGIME_OPT_IN, is_default=True),
    pb.Jurisdiction(id="us-ca", regime=pb.REGIME_OPT_OUT, gpc_objects_to=["measurement"]),
]
DECLARED = pb.PublishPurposesRequest(
    purposes=[ADS, purpose("measurement")], notices=[NOTICE], jurisdictions=PLACES, controller=CONTROLLER
)


async def declared(consent: Any) -> str:
    version: str = (await consent.service.PublishPurposes(DECLARED, timeout=10)).policy_version
    return version


def grant(request_id: str, *purposes: str, **more: Any) -> pb.RecordRequest:
    answers = [pb.PurposeAnswer(purpose=name, state=pb.CONSENT_STATE_GRANTED) for name in purposes]
    given = {"notice_version": "n1", "notice_language": "en", "mechanism": "banner", **more}
    return pb.RecordRequest(request_id=request_id, subject=who(ALICE), answers=answers, **given)


async def verdict(consent: Any, signals: common_pb.ConsentSignals | None = None, *, name: str = "ads") -> str:
    query = pb.EvaluateQuery(members=member(ALICE), purposes=[name], signals=signals)
    response = await consent.service.Evaluate(pb.EvaluateRequest(queries=[query]), timeout=10)
    (one,) = response.evaluations[0].verdicts
    state = pb.ConsentState.Name(one.state).removeprefix("CONSENT_STATE_")
    return " ".join(filter(None, ("yes" if one.allowed else "no", state, one.signal, one.signal_reason)))


def problems_counted(signal: str) -> float:
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "comity_consent_signal_problems_total" and sample.labels["signal"] == signal
    )


async def test_notices_and_places_are_part_of_the_policy_and_stay(
    consent: Any, consent_over: Callable[..., Any]
) -> None:
    """Declared, kept, read by another replica; a publisher of purposes alone takes nothing away."""
    before = await consent.publish("ads", "measurement")
    version = await declared(consent)
    assert version != before
    assert await consent.publish("measurement") == version
    other = await consent_over(url=consent.url)
    assert (await refusal(other.record("r1", who(ALICE), ads="GRANTED"))).reason == "NOTICE_REQUIRED"
    assert await verdict(other, common_pb.ConsentSignals(jurisdiction="us-ca")) == "yes UNSPECIFIED"
    wrong = pb.PublishPurposesRequest(notices=[pb.Notice(version="n2", languages=["en"], purposes=["fun"])])
    wrong.purposes.add().CopyFrom(ADS)
    error = await refusal(consent.service.PublishPurposes(wrong, timeout=10))
    assert (error.kind, error.problems[0].field) == (Kind.INVALID, "notices[0].purposes[0]")


async def test_a_release_that_knows_no_notices_goes_on_reading(consent: Any) -> None:
    """While old and new run together the purposes lie where they always did."""
    version = await declared(consent)
    old = await consent.pool.fetch("SELECT purpose, version FROM policy_purposes WHERE policy_version = $1", version)
    assert {row["purpose"] for row in old} == {"ads", "measurement"}
    # An answer written as the release before writes it: without the new columns.
    await consent.pool.execute(
        "INSERT INTO consent_state (member_id, purpose, state, consent_version, recorded_at, answered_at, expires_at,"
        " purpose_version) VALUES ($1, 'ads', 1, 1, now(), now(), 'infinity', 1)",
        ALICE,
    )
    assert await verdict(consent) == "yes GRANTED"


async def test_the_history_tells_how_an_answer_was_collected(stitched: Any) -> None:
    """Notice, language, mechanism, source and place; a notice that is expired or unknown leaves nothing."""
    _, consent = stitched
    await declared(consent)
    collected_at = datetime.now(UTC) - timedelta(days=1)
    request = grant("r1", "ads", source_hash="a" * 64, jurisdiction="us-ca")
    request.collected_at.FromDatetime(collected_at)
    await consent.service.Record(request, timeout=10)
    for change, reason in (
        ({"notice_version": ""}, "NOTICE_REQUIRED"),
        ({"notice_version": "n0"}, "NOTICE_UNKNOWN"),
        ({"notice_language": "fr"}, "NOTICE_LANGUAGE_UNKNOWN"),
        ({"jurisdiction": "atlantis"}, "JURISDICTION_UNKNOWN"),
    ):
        assert (await refusal(consent.service.Record(grant("r2", "ads", **change), timeout=10))).reason == reason
    retired = pb.PublishPurposesRequest(purposes=[ADS], notices=[NOTICE])
    retired.notices[0].retired_at.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    await consent.service.PublishPurposes(retired, timeout=10)
    assert (await refusal(consent.service.Record(grant("r2", "ads"), timeout=10))).reason == "NOTICE_RETIRED"
    history = await consent.service.History(pb.HistoryRequest(subject=who(ALICE)), timeout=10)
    (record,) = history.records
    assert (record.notice_version, record.notice_language, record.mechanism) == ("n1", "en", "banner")
    assert (record.source_hash, record.jurisdiction) == ("a" * 64, "us-ca")
    assert record.collected_at.ToDatetime(tzinfo=UTC) == collected_at
    # The place of the answer is the person's, where a call names none.
    assert await verdict(consent, name="measurement") == "yes UNSPECIFIED"
    assert await verdict(consent, common_pb.ConsentSignals(jurisdiction="eu"), name="measurement") == "no UNSPECIFIED"


async def test_an_objection_to_personalization_is_recorded_for_all_that_personalizes(consent: Any) -> None:
    """Needs no notice and no list of purposes; a retry is the same command, another is refused."""
    await declared(consent)
    request = pb.RecordRequest(request_id="r1", subject=who(ALICE), do_not_personalize=True)
    first = await consent.service.Record(request, timeout=10)
    assert await consent.service.Record(request, timeout=10) == first
    assert await consent.states(member(ALICE), "ads", "measurement") == ["OBJECTED", "UNSPECIFIED"]
    other = pb.RecordRequest(request_id="r1", subject=who(ALICE), do_not_personalize=True, jurisdiction="eu")
    assert (await refusal(consent.service.Record(other, timeout=10))).reason == "REQUEST_ID_REUSED"


async def test_signals_decide_for_the_query_they_came_with(consent: Any) -> None:
    """And for no other of the batch; the ledger stays as it is."""
    await declared(consent)
    await consent.service.Record(grant("r1", "ads", "measurement"), timeout=10)
    signals = common_pb.ConsentSignals
    assert await verdict(consent, signals(gpc="1")) == "no OBJECTED gpc GLOBAL_PRIVACY_CONTROL"
    assert await verdict(consent, signals(gpc="1"), name="measurement") == "yes GRANTED"
    in_california = signals(gpc="1", jurisdiction="us-ca")
    assert await verdict(consent, in_california, name="measurement") == "no OBJECTED gpc GLOBAL_PRIVACY_CONTROL"
    assert await verdict(consent, signals(gpc="true")) == "yes GRANTED"
    assert await verdict(consent, signals(usp="1YYN")) == "no OBJECTED usp OPTED_OUT"
    assert await verdict(consent, signals(do_not_personalize=True)) == (
        "no OBJECTED do_not_personalize DO_NOT_PERSONALIZE"
    )
    before = problems_counted("tc_string")
    assert await verdict(consent, signals(tc_string="DBABMA")) == "no DENIED tc_string MALFORMED"
    assert problems_counted("tc_string") == before + 1
    queries = [
        pb.EvaluateQuery(members=member(ALICE), purposes=["ads"], signals=signals(gpc=value))
        for value in ("", "1", "0")
    ]
    response = await consent.service.Evaluate(pb.EvaluateRequest(queries=queries), timeout=10)
    assert [one.verdicts[0].allowed for one in response.evaluations] == [True, False, True]


@pytest.mark.parametrize("value", ["C" * 20_000, "\0", "1\0"], ids=["long", "nul", "set and nul"])
@pytest.mark.parametrize("name", ["gpc", "tc_string", "gpp", "usp", "jurisdiction"])
async def test_what_no_browser_means_costs_no_call(consent: Any, name: str, value: str) -> None:
    """A string grants nothing, a header or place says nothing, and the other questions of the batch are answered."""
    await declared(consent)
    await consent.service.Record(grant("r1", "ads"), timeout=10)
    odd = common_pb.ConsentSignals()
    setattr(odd, name, value)
    queries = [pb.EvaluateQuery(members=member(ALICE), purposes=["ads"], signals=each) for each in (odd, None)]
    response = await consent.service.Evaluate(pb.EvaluateRequest(queries=queries * 128), timeout=10)
    (first,), (second,) = ([*one.verdicts] for one in response.evaluations[:2])
    assert first.allowed is (name in ("gpc", "jurisdiction"))
    assert first.signal_reason == ("" if first.allowed else "MALFORMED")
    assert second.allowed


def test_a_string_that_is_passed_on_is_still_found_to_be_too_long() -> None:
    """What services cut is longer than what the decoders take."""
    assert SIGNAL_CHARACTERS_MAX == CHARACTERS_MAX + 1


async def test_that_a_grant_ran_out_becomes_a_fact_once(stitched: Any) -> None:
    """By two leaders at once, and again; what stands does not change, a renewed grant counts again."""
    _, consent = stitched
    await declared(consent)
    request = grant("r1", "ads")
    with consent.an_hour_ago() as expires_at:
        request.expires_at.FromDatetime(expires_at)
        await consent.service.Record(request, timeout=10)
    await consent.service.Record(grant("r2", "measurement"), timeout=10)
    runners = [asyncio.ensure_future(Expiries(consent.pool, consent.handlers, poll_s=0.02).run()) for _ in range(2)]
    try:
        await asyncio.gather(*(consent.handlers.expire() for _ in range(4)))
        await eventually(partial(is_recorded, consent))
        for _ in range(3):
            await consent.handlers.expire()
    finally:
        for task in runners:
            task.cancel()
        await asyncio.wait({*runners})
    assert len(await expired_events(consent)) == 1
    history = await consent.service.History(pb.HistoryRequest(subject=who(ALICE)), timeout=10)
    assert [(one.purpose, one.state, one.consent_version) for one in history.records] == [
        ("ads", pb.CONSENT_STATE_GRANTED, 1),
        ("measurement", pb.CONSENT_STATE_GRANTED, 2),
        ("ads", pb.CONSENT_STATE_EXPIRED, 3),
    ]
    assert history.records[2].expires_at == request.expires_at
    assert await verdict(consent) == "no EXPIRED"
    assert await consent.states(member(ALICE), "measurement") == ["GRANTED"]
    await consent.service.Record(grant("r3", "ads"), timeout=10)
    await consent.handlers.expire()
    assert await verdict(consent) == "yes GRANTED"
    assert await consent.states(member(BOB), "ads") == ["UNSPECIFIED"]


async def is_recorded(consent: Any) -> bool:
    """Whether some grant is recorded to have run out."""
    return bool(await expired_events(consent))


async def expired_events(consent: Any) -> list[Any]:
    log = await PostgresEventStore(consent.pool).read_log(ORIGIN, limit=1000)
    return [event for event in log if event.type.endswith("ConsentExpired")]


async def test_nothing_is_added_to_the_ledger_of_somebody_erased(consent: Any) -> None:
    """Not even that a grant ran out; and those after them are not kept waiting."""
    await declared(consent)
    with consent.an_hour_ago() as expires_at:
        for request_id, subject in (("r1", ALICE), ("r2", BOB)):
            request = grant(request_id, "ads")
            request.subject.CopyFrom(who(subject))
            request.expires_at.FromDatetime(expires_at)
            await consent.service.Record(request, timeout=10)
    await consent.pool.execute("INSERT INTO erased_members (member_id, erasure_id) VALUES ($1, 'e1')", ALICE)
    await consent.handlers.expire()
    assert [event.subject_id for event in await expired_events(consent)] == [BOB]
    assert (await refusal(consent.service.Record(grant("r3", "ads"), timeout=10))).reason == "SUBJECT_ERASED"
