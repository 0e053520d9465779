"""Failures seen in other systems, kept away from this one: those that need running services to show.

Each test names the system and what it did, as its public source, issue or documentation says. tests/unit/
test_failures_of_others.py has those that pure functions can show, test_cancelled_reads.py the storm of cancelled reads.
"""

import asyncio
import uuid

import grpc
import numpy as np
import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.connections import Services
from services.chassis.status import from_call_error
from tests.e2e.erasing import erase
from tests.e2e.people import CALL_S, DEFAULTS, NOTICE_VERSION, PURPOSES, Person, item_ids, ranked_person, reason

NO_CONSENT = "DEFAULT/NO_CONSENT"
GRANTED = consent_pb.PurposeAnswer(purpose="measurement", state=consent_pb.CONSENT_STATE_GRANTED)


async def hero_of(person: Person, *, request_id: str = "") -> tuple[str, list[str]]:
    """Why the person sees what on the home page."""
    (hero,) = (await person.decide(request_id=request_id)).decisions
    return reason(hero), item_ids(hero)


async def test_unomi_stores_consent_and_never_checks_it(services: Services) -> None:
    """Apache Unomi keeps consents on the profile as data: a personalization request is answered without reading them.

    Here the answer itself depends on consent: asked by Decide, for this call, before any use of the profile.
    """
    somebody = await ranked_person(services)
    stranger = Person(services)
    assert await hero_of(stranger) == (NO_CONSENT, DEFAULTS["home_hero"])
    await stranger.grant("measurement")
    assert await hero_of(stranger) == (NO_CONSENT, DEFAULTS["home_hero"]), "another purpose is no consent to this one"
    assert (await hero_of(somebody))[0] == "RANKED"


async def test_unomi_merge_brings_a_revoked_consent_back(services: Services) -> None:
    """Apache Unomi: a revoked consent leaves no trace, so that merging with a profile that granted restores it.

    Here the account's refusal holds for the person that browser and account turn out to be, whichever came first.
    """
    browser = Person(services, {"anonymous_id": uuid.uuid4().hex})
    account = Person(services, {"user_id": uuid.uuid4().hex})
    await browser.grant(*PURPOSES, "identity_linking")
    await account.grant("profile_personalization")
    await account.revoke("profile_personalization")
    both = Person(services, {**browser.identities, **account.identities})
    link = identity_pb.LinkRequest(request_id=uuid.uuid4().hex, identities=both.messages)
    linked = await services.identity.Link(link, timeout=CALL_S)
    assert linked.merged
    for somebody in (browser, account, both):
        assert (await hero_of(somebody))[0] == NO_CONSENT
    unlink = identity_pb.UnlinkRequest(request_id=uuid.uuid4().hex, link_id=linked.link_id)
    await services.identity.Unlink(unlink, timeout=CALL_S)
    assert (await hero_of(browser))[0] != NO_CONSENT, "apart again, the browser has its own answer"
    assert (await hero_of(account))[0] == NO_CONSENT


async def test_a_cache_with_a_time_to_live_goes_on_after_a_revocation(services: Services) -> None:
    """Consent platforms hand verdicts to caches that live for seconds to minutes: the profile is used until they end.

    Here no verdict is kept: the very next Decide after Revoke has returned, however warm everything was, sees it.
    """
    somebody = await ranked_person(services)
    for _ in range(3):
        await asyncio.gather(*(hero_of(somebody) for _ in range(8)))
        await somebody.revoke()
        answers = await asyncio.gather(*(hero_of(somebody) for _ in range(8)))
        assert answers == [(NO_CONSENT, DEFAULTS["home_hero"])] * 8
        await somebody.grant()
        assert (await hero_of(somebody))[0] == "RANKED"


async def test_an_idempotency_cache_replays_the_answer_from_before_the_revocation(services: Services) -> None:
    """A store of responses by request id answers a retry with what was said then, consent or not.

    Here a retry reads consent again: the stored slate is given only to those who still allow it.
    """
    somebody = await ranked_person(services)
    request_id = uuid.uuid4().hex
    first = await hero_of(somebody, request_id=request_id)
    assert first[0] == "RANKED"
    assert await hero_of(somebody, request_id=request_id) == first
    await somebody.revoke()
    assert await hero_of(somebody, request_id=request_id) == (NO_CONSENT, DEFAULTS["home_hero"])


async def test_collection_goes_on_after_a_refusal(services: Services) -> None:
    """Trackers that gate what is shown and not what is stored keep the behavior of people who said no.

    Here Track asks as Decide does: what was not agreed to is never stored, and the caller is told.
    """
    somebody = Person(services)
    await somebody.grant()
    await somebody.revoke()
    event = feedback_pb.TrackedEvent(
        event_id=uuid.uuid4().hex, type="click", subject=somebody.subject, item_ids=["kite"]
    )
    tracked = await services.feedback.Track(feedback_pb.TrackRequest(events=[event]), timeout=CALL_S)
    assert tracked.results[0].status == feedback_pb.TRACK_STATUS_DROPPED_NO_CONSENT


async def clicks_of(services: Services, member_id: str) -> float:
    """The count of clicks that features serves for a member; 0 when nothing is known."""
    described = await services.features.DescribeFeatureSet(features_pb.DescribeFeatureSetRequest(), timeout=CALL_S)
    column = next(one for one in described.feature_set.columns if one.name == "subject_clicks")
    query = features_pb.FeatureQuery(subject_id=member_id, member_ids=[member_id])
    query.as_of.GetCurrentTime()
    request = features_pb.GetFeaturesRequest(feature_set_version=described.feature_set.version, queries=[query])
    answer = (await services.features.GetFeatures(request, timeout=CALL_S)).subjects[0]
    value = float(np.frombuffer(answer.vector, "<f4")[column.subject.offset])
    return 0.0 if np.isnan(value) else value


async def test_gorse_goes_on_recommending_from_its_cache_to_whom_it_deleted(services: Services) -> None:
    """Gorse: DELETE /api/user removes the user from its data store and leaves the lists that its cache holds.

    Here who was erased is met as somebody new: no profile, no consent, the default; nothing stored answers for them.
    """
    somebody = await ranked_person(services)
    request_id = uuid.uuid4().hex
    assert (await hero_of(somebody, request_id=request_id))[0] == "RANKED"
    await erase(somebody)
    assert await hero_of(somebody) == (NO_CONSENT, DEFAULTS["home_hero"])
    assert (await hero_of(somebody, request_id=request_id))[0] != "RANKED", "the logged slate is gone as well"


async def test_feast_deletes_no_row(services: Services) -> None:
    """Feast: the interface of its online stores writes rows, reads them and drops whole tables; no row of one entity.

    Here an erasure takes the person's state out of features, cache and counts of items included.
    """
    somebody = await ranked_person(services)
    await somebody.click("kite")
    before = await somebody.resolved()
    assert await clicks_of(services, before.member_id) > 0.0
    await erase(somebody)
    assert await clicks_of(services, before.member_id) == 0.0


async def test_a_redelivery_resurrects_an_erased_subject(services: Services) -> None:
    """Streams keep what a store deleted: an import, a retry or a replay writes the person back a week later.

    Here a suppress list stands in every service: the very same events, sent again, meet somebody new without consent,
    and nothing comes back under the old pseudonym, not even after the person agrees to everything afresh.
    """
    somebody = await ranked_person(services)
    events = await somebody.click("kite")
    before = await somebody.resolved()
    await erase(somebody)
    again = await services.feedback.Track(feedback_pb.TrackRequest(events=events), timeout=CALL_S)
    # The first proves a decision for the old pseudonym, which is nobody's any more: the proof is left out.
    assert [result.status for result in again.results] == [feedback_pb.TRACK_STATUS_DROPPED_NO_CONSENT] * 3
    after = await somebody.resolved()
    assert after.member_id != before.member_id
    await somebody.grant()
    await somebody.click("kite", times=1)
    assert (await somebody.resolved()).member_id == after.member_id
    assert await clicks_of(services, after.member_id) > 0.0
    assert await clicks_of(services, before.member_id) == 0.0
    old = types_pb.SubjectRef(subject_id=before.subject_id)
    record = consent_pb.RecordRequest(
        request_id=uuid.uuid4().hex,
        subject=old,
        answers=[GRANTED],
        notice_version=NOTICE_VERSION,
        notice_language="en",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.consent.Record(record, timeout=CALL_S)
    assert from_call_error(caught.value).reason == "SUBJECT_ERASED"
