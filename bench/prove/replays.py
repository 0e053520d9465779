"""G15: every decision replays to the identical slate, fallbacks included."""

import asyncio
from collections.abc import Sequence

from comity.decision.v1 import decision_service_pb2 as decision_pb

from bench.world import DECIDE_DEADLINE_S, Requests, World, answer_label, revoke
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call

IN_FLIGHT = 16
REPLAY_TIMEOUT_S = 10.0


async def decide_all_kinds(world: World, *, count: int) -> dict[str, list[str]]:
    """Decisions of every kind that a healthy stack makes, by label: ranked, explored, holdout, no consent."""
    for person in world.people[::10]:
        await revoke(world.services, person)
    requests = Requests(world.people, seed=5)
    made: dict[str, list[str]] = {}
    left = iter(range(count))

    async def caller() -> None:
        for number in left:
            answer = await call(world.services.decision.Decide, requests(number), DECIDE_DEADLINE_S)
            decision = answer.decisions[0]
            if decision.exposure_token:
                made.setdefault(answer_label(decision), []).append(decision.decision_id)

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return made


async def replay(world: World, decision_ids: Sequence[str]) -> int:
    """How many of them did not replay to the identical slate, or could not be replayed."""
    differing = 0
    left = iter(decision_ids)

    async def caller() -> None:
        nonlocal differing
        for decision_id in left:
            request = decision_pb.ReplayRequest(decision_id=decision_id)
            try:
                answer = await call(world.services.decision.Replay, request, REPLAY_TIMEOUT_S)
            except ServiceError:
                differing += 1
                continue
            differing += not answer.identical

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return differing
