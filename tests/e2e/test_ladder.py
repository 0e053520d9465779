"""With a service dead or standing still, Decide answers inside its deadline and says what was missing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cli.connections import Services
from cli.stack import Stack
from tests.e2e.people import DEFAULTS, Person, item_ids, ranked_person, reason

EXPECTED = {
    "identity": "DEFAULT/IDENTITY_UNAVAILABLE",
    "consent": "DEFAULT/CONSENT_UNAVAILABLE",
    "features": "POPULAR/FEATURES_UNAVAILABLE",
}
DEADLINE_S = 0.5
# What gRPC and a busy machine may add before the caller has the answer in hand.
SLACK_S = 0.25
RECOVERY_S = 30.0


@asynccontextmanager
async def broken(stack: Stack, service: str, how: str) -> AsyncIterator[None]:
    """The service paused or killed for a while, and well again afterwards."""
    if how == "paused":
        stack.pause(service)
    else:
        await stack.kill(service)
    try:
        yield
    finally:
        if how == "paused":
            stack.resume(service)
        else:
            await stack.restart(service)


@pytest.mark.parametrize("how", ["paused", "dead"])
@pytest.mark.parametrize("service", sorted(EXPECTED))
async def test_decide_answers_on_time_without_a_service(
    stack: Stack, services: Services, service: str, how: str
) -> None:
    """The next rung answers before the deadline, names what was missing, and all is well again afterwards."""
    somebody = await ranked_person(services)
    async with broken(stack, service, how):
        for _ in range(5):
            started_s = time.monotonic()
            (hero,) = (await somebody.decide(timeout_s=DEADLINE_S)).decisions
            assert time.monotonic() - started_s < DEADLINE_S + SLACK_S
            assert reason(hero) == EXPECTED[service]
            assert not hero.learnable
            if service != "features":
                assert item_ids(hero) == DEFAULTS["home_hero"]
    await until_ranked(somebody)


async def until_ranked(person: Person) -> None:
    """Returns once all services take part in the person's decisions again."""
    until = time.monotonic() + RECOVERY_S
    while reason((await person.decide()).decisions[0]) != "RANKED":
        assert time.monotonic() < until, "the services did not recover"
        await asyncio.sleep(0.05)
