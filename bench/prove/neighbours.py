"""G21: a cancelled, slow or greedy client changes nobody else's answers.

A quiet client asks ten times a second, by turns alone and beside each of bench.prove.hostile, which is a process and
has connections of its own.
"""

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.prove.hostile import beside
from bench.prove.open_loop import GOOD_ALONE_MIN, Clients, Seen, clients
from bench.prove.proof import Proof
from bench.ranker import activate_noise
from bench.world import Requests, World, world

KINDS = ("greedy", "cancelling", "idle_streams", "replays", "unread")
QUIET_PER_S = 10.0
DEADLINE_S = 0.5
SHARE_MIN = 0.95
PEOPLE_COUNT = 100
TREES_COUNT = 50
SEED = 21
# Wrong variant → the client that has to be noticed beside it.
TEETH = {"unlimited": "greedy", "uncapped": "idle_streams"}


@dataclass(slots=True)
class Compared:
    """A quiet client alone and beside another, over all laps."""

    alone: list[Seen] = field(default_factory=list)
    beside: list[Seen] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the good answers of the client when alone, how many it has beside the other."""
        alone = _good_share(self.alone)
        return _good_share(self.beside) / alone if alone else 0.0

    @property
    def p99_ratio(self) -> float:
        """How many times as long the slowest good answers took."""
        alone, other = _p99_s(self.alone), _p99_s(self.beside)
        return other / alone if alone else 0.0


async def prove(folder: Path, *, laps: int, duration_s: float) -> Proof:
    """The promise beside every kind of client; a decision without limiter, and one without caps, must be caught."""
    async with world(folder, people_count=PEOPLE_COUNT, disposable=True, holdout_share=0.0) as ready:
        await activate_noise(ready.services, trees_count=TREES_COUNT)
        found = await _compare(ready, KINDS, laps=laps, duration_s=duration_s)
        teeth = {}
        for variant, kind in TEETH.items():
            await ready.stack.become("decision", variant)
            compared = (await _compare(ready, (kind,), laps=1, duration_s=duration_s))[kind]
            # What answers nobody is caught by anything, and would show nothing.
            teeth[variant] = int(_good_share(compared.alone) > GOOD_ALONE_MIN and compared.share < SHARE_MIN)
    return Proof(
        trials=sum(seen.sent for one in found.values() for seen in one.beside),
        failures=sum(one.share < SHARE_MIN for one in found.values())
        + sum(seen.overdue for one in found.values() for seen in one.beside),
        teeth=teeth,
        facts={
            **{f"share_{kind}": round(one.share, 3) for kind, one in found.items()},
            **{f"p99_ratio_{kind}": round(one.p99_ratio, 2) for kind, one in found.items()},
        },
    )


async def _compare(ready: World, kinds: tuple[str, ...], *, laps: int, duration_s: float) -> Mapping[str, Compared]:
    stack, rng = ready.stack, random.Random(SEED)
    found = {kind: Compared() for kind in kinds}
    requests = Requests(ready.people, seed=SEED)
    async with clients(stack.address("decision"), requests, count=1, deadline_s=DEADLINE_S) as quiet:
        await quiet.closed(1, 1.0)
        for _ in range(laps):
            for kind, compared in found.items():
                compared.alone.append(await _ask(quiet, duration_s, rng))
                async with beside(kind, stack.addresses, stack.command("decision").cwd):
                    compared.beside.append(await _ask(quiet, duration_s, rng))
                print(
                    f"neighbours: {kind}: share {compared.share:.3f}, p99 × {compared.p99_ratio:.1f}, "
                    f"{compared.alone[-1].answers} {compared.beside[-1].answers}",
                    file=sys.stderr,
                    flush=True,
                )
    return found


async def _ask(quiet: Clients, duration_s: float, rng: random.Random) -> Seen:
    return await quiet.poisson(QUIET_PER_S, duration_s, rng)


def _good_share(seen: list[Seen]) -> float:
    sent = sum(one.sent for one in seen)
    return sum(one.good for one in seen) / sent if sent else 0.0


def _p99_s(seen: list[Seen]) -> float:
    latencies_s = [one_s for one in seen for one_s in one.latencies_s]
    return float(np.percentile(latencies_s, 99)) if latencies_s else 0.0
