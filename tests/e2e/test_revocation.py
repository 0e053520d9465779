"""After Revoke has returned no Decide uses the profile, however many are under way."""

import asyncio
import random
from dataclasses import dataclass, field

from cli.connections import Services
from tests.e2e.people import DEFAULTS, Person, item_ids, reason

PEOPLE = 30
DECIDERS = 8
DECIDES_MIN = 600


@dataclass
class History:
    """What was seen of one person.

    Args:
        changes: how often the person's mind changed; odd while a revocation has returned and nothing was granted since.
    """

    person: Person
    changes: int = 0
    reasons: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


async def test_no_decide_that_begins_after_revoke_returned_is_personalized(services: Services) -> None:
    """Deciders run all the time while people revoke and agree again; at least half of the answers are ranked."""
    histories = [History(Person(services)) for _ in range(PEOPLE)]
    await asyncio.gather(*(history.person.grant() for history in histories))
    chance = random.Random(20)
    decided = 0
    done = asyncio.Event()

    async def decide() -> None:
        nonlocal decided
        while not done.is_set():
            history = chance.choice(histories)
            before = history.changes
            (hero,) = (await history.person.decide()).decisions
            decided += 1
            history.reasons.append(reason(hero))
            # Revoked before this began and not granted until it ended: the person must not be recognized.
            if before % 2 and history.changes == before and item_ids(hero) != DEFAULTS["home_hero"]:
                history.violations.append(reason(hero))

    async def change_minds() -> None:
        while decided < DECIDES_MIN:
            for history in chance.sample(histories, 4):
                await history.person.revoke()
                history.changes += 1
                for _ in range(3):
                    (hero,) = (await history.person.decide()).decisions
                    assert item_ids(hero) == DEFAULTS["home_hero"], reason(hero)
                history.changes += 1
                await history.person.grant()
        done.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(DECIDERS):
            group.create_task(decide())
        group.create_task(change_minds())
    assert [violation for history in histories for violation in history.violations] == []
    reasons = [word for history in histories for word in history.reasons]
    assert len(reasons) >= DECIDES_MIN
    assert reasons.count("RANKED") >= len(reasons) / 2
