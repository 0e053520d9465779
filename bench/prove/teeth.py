"""Designs of revocation that are known to be wrong, each tried until the checker of G7 has had its chance to say so.

All on one stack, whose decision or consent becomes one wrong variant after the other; nothing else fails but the one
line that shows what is wrong with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from bench.prove.faults import COMMIT
from bench.prove.links import Links
from bench.prove.revocation import Pace, Tally, Trial
from bench.prove.under_faults import Breakable

# A Revoke waits so long: longer than bench.variants.lease, shorter than bench.variants.ttl_cache remembers.
TEETH_BUDGET_MS = 600
# Long beside a Revoke, so that an answer is overtaken by one; well inside the share of the consent read.
SLOW_S = 0.25
# Few people of whom much is asked, and who change their minds often.
PACE = Pace(
    people=12,
    in_flight=24,
    deciders=2,
    pause_s=(0.0, 0.12),
    granted_s=(0.6, 1.1),
    revoked_s=(0.4, 0.8),
    changes=2,
    given_up=0.0,
)
REVOKES = 24
LOSING_S, KEEPING_S = 0.4, 0.8

Harm = Callable[[Links, asyncio.Event], Awaitable[None]]


async def no_harm(_: Links, __: asyncio.Event) -> None:
    """Everything works."""


async def slow_reads(links: Links, stop: asyncio.Event) -> None:
    """Consent's answers arrive late, in good order."""
    for link in links.of("decision", "consent"):
        link.answers.delay_s = SLOW_S
    await _healed_at(stop, links)


async def silent_channel(links: Links, stop: asyncio.Event) -> None:
    """What consent publishes waits."""
    for link in links.of("consent", "nats"):
        link.hold()
    await _healed_at(stop, links)


async def lost_commits(links: Links, stop: asyncio.Event) -> None:
    """Now and then consent's connections to Postgres break at the COMMIT."""
    while not stop.is_set():
        for link in links.of("consent", "postgres"):
            link.lose(COMMIT)
        await asyncio.sleep(LOSING_S)
        links.heal()
        await asyncio.sleep(KEEPING_S)


async def _healed_at(stop: asyncio.Event, links: Links) -> None:
    await stop.wait()
    links.heal()


@dataclass(frozen=True, slots=True)
class Tooth:
    """A wrong design.

    Args:
        decision, consent: the variants that these services become; empty for the real ones.
        caught: how often the checker found what is wrong with it.
    """

    decision: str = "observed"
    consent: str = ""
    harm: Harm = no_harm
    caught: Callable[[Tally], int] = field(default=lambda tally: tally.p1)


TEETH: Mapping[str, Tooth] = {
    "revoke_without_drain": Tooth(consent="hasty", harm=slow_reads, caught=lambda tally: tally.p2),
    "joining_a_read_in_flight": Tooth(decision="joining", consent="hasty", harm=slow_reads),
    "lease_counted_from_receipt": Tooth(decision="lease", harm=slow_reads),
    "cache_with_a_ttl": Tooth(decision="ttl_cache"),
    "cache_invalidated_by_events": Tooth(decision="invalidated", harm=silent_channel),
    "unknown_commit_reported_as_ok": Tooth(consent="hopeful", harm=lost_commits),
}


async def bite(found: Breakable, *, only: str = "") -> tuple[dict[str, int], int]:
    """How often each wrong design was caught, and how often the right read was found wrong where Revoke does not wait.

    The second must be 0: who reads after the Decide began keeps P1 by that alone.
    """
    caught, right_p1 = {}, 0
    for number, (name, tooth) in enumerate(TEETH.items()):
        if only not in ("", name):
            continue
        tally = await try_tooth(found, tooth, seed=1_000 + number)
        caught[name] = tooth.caught(tally)
        if name == "revoke_without_drain":
            right_p1 = tally.p1
    return caught, right_p1


async def try_tooth(found: Breakable, tooth: Tooth, *, seed: int) -> Tally:
    """One wrong design in a small run."""
    stack, links = found.world.stack, found.links
    await stack.become("consent", tooth.consent)
    await stack.become("decision", tooth.decision)
    trial = Trial(found.world, PACE, seed=seed)
    return await trial.run(lambda seen: seen.revokes >= REVOKES, beside=lambda: tooth.harm(links, trial.stop))
