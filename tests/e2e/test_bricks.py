"""The proof that nothing stored keeps a service from starting, in small: two services of the shared stack."""

import pytest

from bench.prove import bricks
from cli.bundle import apply_bundle
from cli.connections import Services
from cli.stack import Stack
from tests.e2e.people import ranking_shop

# What only the world of the proof has, or another proof is about.
ELSEWHERE = ("models",)


@pytest.mark.parametrize("service", ["decision", "features"])
async def test_service_starts_on_what_it_cannot_read_and_says_so(
    stack: Stack, services: Services, service: str
) -> None:
    """It serves meanwhile, names each row, and reads them once they are mended, without another start."""
    for epsilon in (0.5, 0.0):
        # A site before, to go on with.
        hero = next(policy.message for policy in ranking_shop().policies if policy.message.id == "hero")
        hero.epsilon = epsilon
        await apply_bundle(ranking_shop().with_policies({"hero": hero}), services)
    own = [brick for brick in bricks.bricks_of(bricks.RUINS[0]) if brick.service == service]
    planted = bricks.rounds(brick for brick in own if brick.table not in ELSEWHERE)[0]
    assert len(planted) >= 5
    assert await bricks.try_bricks(stack, services, planted) == bricks.Tried(len(planted))
    assert await bricks.is_served(services, within_s=bricks.WITHIN_S)
