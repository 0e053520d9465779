"""G7: a Decide invoked after Revoke returned never uses the profile.

People grant and revoke in turn while several callers decide for each of them; every call is kept with its times,
and the histories are judged afterwards (histories.py). The joining variant of decision, which lets a consent read join
a batch already in flight, must be caught by the same judge.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from comity.decision.v1 import decision_events_pb2 as events_pb

from bench.prove.histories import Act, Call
from bench.prove.linearizable import violations
from bench.world import Requests, World, grant, revoke
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call

CALLERS_A_PERSON = 6
DECIDE_TIMEOUT_S = 1.5
PAUSE_S_MAX = 0.2
# Long enough granted that at least half of the answers are ranked, which is what makes the trial worth anything.
GRANTED_FOR_S = 1.6
# Longer than a Decide takes: one that overlaps the next grant may lawfully see it, and would show nothing.
REVOKED_FOR_S = 0.8
PERSONAL = (events_pb.REASON_RANKED, events_pb.REASON_EXPLORED)


@dataclass(frozen=True, slots=True)
class Tried:
    """What one run saw."""

    decides: int
    ranked: int
    revokes: int
    violations: int


async def run(world: World, *, decides: int, revokes: int) -> Tried:
    """Grant, revoke and decide until both counts are reached."""
    histories: dict[str, list[Call]] = {person: [] for person in world.people}
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number, person in enumerate(world.people):
            group.create_task(_change_mind(world, person, histories[person], stop))
            for caller in range(CALLERS_A_PERSON):
                group.create_task(_decide(world, person, number * CALLERS_A_PERSON + caller, histories[person], stop))
        group.create_task(_until(histories, decides, revokes, stop))
    return _judge(histories)


async def _until(histories: Mapping[str, list[Call]], decides: int, revokes: int, stop: asyncio.Event) -> None:
    while not stop.is_set():
        calls = [one for history in histories.values() for one in history]
        decided = sum(one.act in (Act.DECIDE_PERSONAL, Act.DECIDE_PLAIN) for one in calls)
        revoked = sum(one.act is Act.REVOKE for one in calls)
        if decided >= decides and revoked >= revokes:
            stop.set()
        await asyncio.sleep(0.2)


async def _change_mind(world: World, person: str, history: list[Call], stop: asyncio.Event) -> None:
    """Grant and revoke in turn, each repeated until it is answered: an unanswered one binds nobody."""
    while not stop.is_set():
        await _recorded(history, Act.GRANT, grant(world.services, person, timeout_s=5.0))
        await asyncio.sleep(GRANTED_FOR_S)
        await _recorded(history, Act.REVOKE, revoke(world.services, person, timeout_s=5.0))
        await asyncio.sleep(REVOKED_FOR_S)


async def _recorded(history: list[Call], act: Act, change: Awaitable[None]) -> None:
    began = time.monotonic()
    try:
        await change
    except ServiceError:
        history.append(Call(act, began, float("inf")))
        return
    history.append(Call(act, began, time.monotonic()))


async def _decide(world: World, person: str, seed: int, history: list[Call], stop: asyncio.Event) -> None:
    requests = Requests([person], seed=seed)
    pauses = random.Random(seed)
    number = 0
    while not stop.is_set():
        number += 1
        # Callers of one person must not fall into step: who joins a read in flight begins while another waits for it.
        await asyncio.sleep(pauses.uniform(0.0, PAUSE_S_MAX))
        began = time.monotonic()
        try:
            answer = await call(world.services.decision.Decide, requests(number), DECIDE_TIMEOUT_S)
        except ServiceError:
            continue
        decision = answer.decisions[0]
        act = Act.DECIDE_PERSONAL if decision.reason in PERSONAL else Act.DECIDE_PLAIN
        history.append(Call(act, began, time.monotonic(), decision.decision_id))


def _judge(histories: Mapping[str, list[Call]]) -> Tried:
    calls = [one for history in histories.values() for one in history]
    return Tried(
        decides=sum(one.act in (Act.DECIDE_PERSONAL, Act.DECIDE_PLAIN) for one in calls),
        ranked=sum(one.act is Act.DECIDE_PERSONAL for one in calls),
        revokes=sum(one.act is Act.REVOKE for one in calls),
        violations=sum(len(violations(history)) for history in histories.values()),
    )
