"""What the platform's own log says about the run: decisions and outcomes, as ReplayEvents gives them."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from comity.feedback.v1 import feedback_service_pb2 as pb

from cli.connections import Services
from cli.demo.simulator import Shop, Visitor
from cli.demo.statistics import Rate, Tally, rate_of
from learning.log import replay_log
from services.chassis.errors import Kind, ServiceError

JOINED_TIMEOUT_S = 60.0
JOINED_SETTLED_S = 15.0
JOINED_SHARE_MIN = 0.99
JOINED_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Logged:
    """One decision as the log has it."""

    decision_id: str
    placement_id: str
    holdout: bool
    item_ids: tuple[str, ...]


@dataclass(slots=True)
class Log:
    """Decisions by id, and which of their items were clicked."""

    decisions: dict[str, Logged] = field(default_factory=dict)
    clicked: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClickRates:
    """Clicks an entry in the two arms, and the most that was possible for the visitors of the first."""

    ranked: Rate
    holdout: Rate
    optimum: Rate


async def wait_joined(services: Services, outcomes_count: int) -> None:
    """Returns once that many outcomes have been joined to their decisions, or nearly all and no more are coming.

    Raises:
        ServiceError: DEADLINE when no more are for a minute.
    """
    loop = asyncio.get_running_loop()
    until, settled_at = loop.time() + JOINED_TIMEOUT_S, loop.time() + JOINED_SETTLED_S
    before = 0
    while (joined := await _outcomes(services)) < outcomes_count:
        if joined > before:  # a busy machine is slow, and goes on
            before, until = joined, loop.time() + JOINED_TIMEOUT_S
        # An answer may lose its place in the log when a disk stalls; then its click waits for it for ever.
        if joined >= JOINED_SHARE_MIN * outcomes_count and loop.time() > settled_at:
            return
        if loop.time() > until:
            raise ServiceError(
                Kind.DEADLINE,
                "OUTCOMES_NOT_JOINED",
                f"{joined} of {outcomes_count} outcomes were joined to decisions, and no more within "
                f"{JOINED_TIMEOUT_S:.0f} s; see the log of feedback",
            )
        await asyncio.sleep(JOINED_POLL_S)


async def _outcomes(services: Services) -> int:
    request = pb.ReplayEventsRequest(kinds=[pb.REPLAY_KIND_OUTCOME])
    joined = 0
    async for page in replay_log(services.feedback, request):
        joined += len(page.events)
    return joined


async def read_log(services: Services) -> Log:
    """The whole log, as far as the demo needs it."""
    log = Log()
    request = pb.ReplayEventsRequest(kinds=[pb.REPLAY_KIND_DECISION, pb.REPLAY_KIND_OUTCOME])
    async for page in replay_log(services.feedback, request):
        for event in page.events:
            if event.WhichOneof("payload") == "decision":
                made = event.decision
                items = tuple(entry.item_id for entry in made.slate)
                log.decisions[made.decision_id] = Logged(
                    made.decision_id, made.placement_id, made.assignment.holdout, items
                )
            elif event.outcome.type == "click":
                log.clicked.setdefault(event.outcome.decision_id, set()).add(event.outcome.item_id)
    return log


def click_rates(log: Log, shop: Shop, asked: Mapping[str, Visitor]) -> ClickRates:
    """Click rates of the arms among the decisions that were *asked* for, by decision id.

    Every decision of an arm counts, also explored and late ones: that is what the visitors of the arm got.
    """
    arms: dict[bool, dict[int, list[Logged]]] = {True: {}, False: {}}
    for decision_id, visitor in asked.items():
        made = log.decisions.get(decision_id)
        if made is not None:
            arms[made.holdout].setdefault(visitor.number, []).append(made)
    visitors = {visitor.number: visitor for visitor in asked.values()}
    best = [_best(shop, visitors[number], decisions) for number, decisions in arms[False].items()]
    return ClickRates(
        ranked=rate_of(_clicked(log, decisions) for decisions in arms[False].values()),
        holdout=rate_of(_clicked(log, decisions) for decisions in arms[True].values()),
        optimum=rate_of(best),
    )


def _clicked(log: Log, decisions: Iterable[Logged]) -> Tally:
    made = list(decisions)
    clicks = sum(len(log.clicked.get(one.decision_id, set()) & set(one.item_ids)) for one in made)
    return Tally(clicks, sum(len(one.item_ids) for one in made))


def _best(shop: Shop, visitor: Visitor, decisions: Iterable[Logged]) -> Tally:
    """What the best slates of the same sizes would have got, on average."""
    sizes = [len(one.item_ids) for one in decisions]
    clicks = sum(shop.expected_click_rate(visitor, shop.best_slate(visitor, size)) * size for size in sizes)
    return Tally(clicks, sum(sizes))
