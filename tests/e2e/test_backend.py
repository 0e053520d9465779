"""What a backend does about a person, with the client that it installs, from the first visit to the revocation."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from comity_client import ComityClient, ConsentSignals, Entry

from cli.stack import Stack
from tests.e2e.people import DEFAULTS, NOTICE_VERSION, PURPOSES

RANKED = ("RANKED", "HOLDOUT")
NOBODYS = ["undefined", "", "x" * 300, "0"]


@pytest.fixture
async def comity(stack: Stack) -> AsyncIterator[ComityClient]:
    """The client, as a backend makes it."""
    where = stack.addresses
    async with ComityClient(
        where["decision"],
        feedback_address=where["feedback"],
        consent_address=where["consent"],
        identity_address=where["identity"],
        defaults={"home_hero": [Entry("own")]},
        deadline_s=10,
        track_deadline_s=10,
        people_deadline_s=30,
    ) as client:
        yield client


async def test_a_visitor_agrees_logs_in_and_takes_it_back(comity: ComityClient) -> None:
    """Every call of the client about people, over the services as they run."""
    visitor, user = {"anonymous_id": uuid.uuid4().hex}, {"user_id": uuid.uuid4().hex}
    told: dict[str, Any] = {"notice_version": NOTICE_VERSION, "notice_language": "en"}
    early = await comity.identify(identities=user | visitor)
    assert (early.status, early.reason) == ("REFUSED", "IDENTITY_LINKING_NOT_ALLOWED")
    answers: dict[str, Any] = dict.fromkeys((*PURPOSES, "identity_linking"), True)
    recorded = await comity.consent.record(identities=visitor, answers=answers, mechanism="banner", **told)
    assert recorded.status == "DONE", recorded.problem
    linked = await comity.identify(identities=user | visitor)
    assert (linked.status, linked.merged, linked.subject_id) == ("DONE", True, recorded.subject_id)
    hero = (await comity.decide(identities=user, placements=["home_hero"]))["home_hero"]
    assert hero.reason in RANKED
    assert (await comity.track("click", identities=user, item_ids=["tote"], decision=hero)).status == "ACCEPTED"
    objected = await comity.consent.object(identities=user, purposes=["measurement"])
    revoked = await comity.consent.revoke(identities=user)
    assert (objected.status, revoked.status) == ("DONE", "DONE")
    hero = (await comity.decide(identities=visitor, placements=["home_hero"]))["home_hero"]
    assert (hero.reason, hero.fallback_reason) == ("DEFAULT", "NO_CONSENT")
    history = await comity.consent.history(identities=user, accessor="tests", reason="shown to the person")
    states = [one.state for one in history.records]
    assert states.count("GRANTED") == len(answers)
    assert states.index("OBJECTED") == len(answers)
    assert set(states[len(answers) + 1 :]) == {"REVOKED"}


@pytest.mark.parametrize("value", NOBODYS, ids=lambda value: repr(value)[:12])
async def test_a_visitor_whose_cookie_names_nobody_breaks_nothing(comity: ComityClient, value: str) -> None:
    """And is nobody: no consent that somebody gave under such a value is theirs, and nothing is kept under it."""
    who = {"anonymous_id": value}
    odd = "\0" + "x" * 20_000
    recorded = await comity.consent.record(
        identities=who, answers={"measurement": True}, notice_version=NOTICE_VERSION, notice_language="en"
    )
    assert (recorded.status, recorded.reason) == ("REFUSED", "NOBODY_NAMED")
    page = await comity.decide(
        identities=who,
        placements=["home_hero"],
        context={"user_agent": odd},
        consent_signals=ConsentSignals(gpc=odd, tc_string=odd, gpp=odd, usp=odd, jurisdiction=odd),
    )
    hero = page["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("fallback", "NO_CONSENT")
    assert [one.item_id for one in hero.entries] == DEFAULTS["home_hero"]
    assert (await comity.track("click", identities=who, item_ids=["tote"])).status == "DROPPED_NO_CONSENT"
