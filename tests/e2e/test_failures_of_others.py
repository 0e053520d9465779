"""Failures seen in other systems, kept away from this one: those that need running services to show.

Each test names the system and what it did, as its public source, issue or documentation says. tests/unit/
test_failures_of_others.py has those that pure functions can show, test_cancelled_reads.py the storm of cancelled reads.
"""

import asyncio
import uuid

from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.connections import Services
from tests.e2e.people import CALL_S, DEFAULTS, PURPOSES, Person, item_ids, ranked_person, reason

NO_CONSENT = "DEFAULT/NO_CONSENT"


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
