"""G7 at strength: the stack that is tried, with every line of it breakable, and the run through faults."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.prove.faults import CALM_S, Fault, Faults
from bench.prove.links import Links, lines
from bench.prove.revocation import Pace, Tally, Trial
from bench.ranker import activate_noise
from bench.world import World, world
from cli.stack import SERVICES, budgets

# Order is what is tried, not speed: a small ranker, and a budget that a busy machine seldom overruns. As in production
# a Revoke waits as long as a Decide may take.
TREES_COUNT = 10
BUDGET_MS = 800
READ_MS = 250
UNTRACED = {f"COMITY_{name.upper()}_TRACE_RATIO": "0.001" for name in SERVICES}


@dataclass(frozen=True, slots=True)
class Breakable:
    """A running stack, and its lines."""

    world: World
    links: Links


@asynccontextmanager
async def breakable(
    folder: Path, *, replicas: int = 1, budget_ms: int = BUDGET_MS, disposable: bool = False
) -> AsyncIterator[Breakable]:
    """A stack with so many replicas of decision, which say when they emitted what; nobody is in the holdout."""
    count = {"decision": replicas}
    async with (
        lines(count) as links,
        world(
            folder,
            people_count=0,
            env={"*": UNTRACED, **budgets(budget_ms, read_ms=READ_MS)},
            variants={"decision": "observed"},
            replicas=count,
            redirect=links.redirect,
            disposable=disposable,
            holdout_share=0.0,
        ) as ready,
    ):
        await activate_noise(ready.services, trees_count=TREES_COUNT)
        yield Breakable(ready, links)


async def try_under_faults(
    found: Breakable,
    faults: Iterable[Fault],
    *,
    decides: int,
    revokes: int,
    faults_min: int = 0,
    pace: Pace | None = None,
    seed: int = 0,
    calm_s: tuple[float, float] = CALM_S,
) -> tuple[Tally, Faults]:
    """Live and decide while the faults come one after the other, until all three counts are reached."""
    bringing = Faults(found.world.stack, found.links, seed=seed)
    trial = Trial(found.world, pace or Pace(), seed=seed, under_way=bringing.under_way, stopped=bringing.stopped)
    tally = await trial.run(
        lambda seen: seen.decides >= decides and seen.revokes >= revokes and len(bringing.windows) >= faults_min,
        beside=lambda: bringing.run(iter(faults), trial.stop, calm_s=calm_s),
    )
    return tally, bringing
