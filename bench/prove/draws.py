"""Logged propensities are true: over many draws of the same inputs, entries appear as often as they say."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from bench.world import DECIDE_DEADLINE_S, Requests, World
from services.chassis.rpc_client import call

IN_FLIGHT = 16
# A true log fails one honest run in ten thousand; a wrong one fails them all at this many draws.
P_VALUE_MIN = 1e-4


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was served over all draws of one request.

    Args:
        counts: (slot, item) → how often it was served.
        propensities: (slot, item) → what its entries said; the same in every decision.
        outside: entries whose propensity is not in (0, 1].
    """

    draws: int
    counts: Mapping[tuple[int, str], int]
    propensities: Mapping[tuple[int, str], float]
    outside: int

    @property
    def p_value(self) -> float:
        """The smallest of the slots' chi-square p-values, corrected for their number; 0 when an entry lies."""
        if self.outside:
            return 0.0
        slots = sorted({slot for slot, _ in self.counts})
        return min(1.0, len(slots) * min(self._slot_p_value(slot) for slot in slots))

    def _slot_p_value(self, slot: int) -> float:
        seen = {key: count for key, count in self.counts.items() if key[0] == slot}
        observed = [*seen.values(), self.draws - sum(seen.values())]
        expected = [self.draws * self.propensities[key] for key in seen]
        expected.append(self.draws - sum(expected))
        if expected[-1] < -1e-6 * self.draws:
            return 0.0  # the propensities of a slot add up to more than 1
        if expected[-1] < 1.0:  # everything that can be served was
            observed, expected = observed[:-1], expected[:-1]
            expected = [value * sum(observed) / sum(expected) for value in expected]
        return float(stats.chisquare(observed, expected).pvalue)


async def draw(world: World, *, draws: int) -> Drawn:
    """Ask for the same person and the same candidates again and again, each time as a new request."""
    requests = Requests(world.people[:1], seed=3)
    counts: Counter[tuple[int, str]] = Counter()
    propensities: dict[tuple[int, str], float] = {}
    outside = 0
    left = iter(range(draws))
    drawn = 0

    async def caller() -> None:
        nonlocal drawn, outside
        for _ in left:
            answer = await call(world.services.decision.Decide, requests(0), DECIDE_DEADLINE_S)
            # Nothing was drawn for a fallback.
            drawn += answer.decisions[0].HasField("slate")
            for entry in answer.decisions[0].slate.entries:
                key = (entry.slot, entry.item_id)
                counts[key] += 1
                outside += not 0.0 < entry.propensity <= 1.0
                outside += propensities.setdefault(key, entry.propensity) != entry.propensity

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return Drawn(drawn, counts, propensities, outside)


def without_exploration(drawn: Drawn) -> Drawn:
    """The same draws with propensities that forget the exploration: what the test must refuse."""
    best = {
        slot: max((k for k in drawn.counts if k[0] == slot), key=drawn.counts.__getitem__) for slot, _ in drawn.counts
    }
    wrong = {key: 0.999 if best[key[0]] == key else 1e-6 for key in drawn.propensities}
    return Drawn(drawn.draws, drawn.counts, wrong, 0)
