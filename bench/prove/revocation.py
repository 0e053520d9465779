"""G7: people grant and revoke again and again while callers decide for them on every replica, whatever fails meanwhile.

Each person's life is one history (histories.py), judged when it ends and then forgotten. A command without an answer is
sent again under its request id until it has one, or given up for good; then the life ends soon, because from there on
its history explains nearly everything.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb

from bench.prove.histories import Act, Call, emitted_after_revoke
from bench.prove.linearizable import violations
from bench.variants.observed import EMITTED
from bench.world import Requests, World, answer_label, grant_request, revoke_request
from cli.connections import Services
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call
from services.chassis.status import from_call_error

# Longer than the budget of a Decide, which is to end it.
DECIDE_TIMEOUT_S = 1.5
CHANGE_TIMEOUT_S = 3.0
RETRY_PAUSE_S = 0.2
# Changes are sent again at most so long: a fault and the recovery from it are over by then.
SETTLE_S = 60.0
LOOK_EVERY_S = 0.1
CANDIDATES_COUNT = 5
OUTAGES = (Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED, Kind.CONFLICT)
PERSONAL = (events_pb.REASON_RANKED, events_pb.REASON_EXPLORED)


@dataclass(frozen=True, slots=True)
class Pace:
    """How people live.

    Args:
        people: lives at a time.
        in_flight: most background decides under way at a time, over all people.
        deciders: background callers a person.
        pause_s: between two decides of a caller, from and to. Callers of one person must not fall into step.
        granted_s, revoked_s: how long a person stays of one mind, from and to.
        changes: of mind in a life.
        probes: decides sent the moment a Revoke has returned: a stale read shows there first.
        given_up: share of the unanswered commands that are not sent again.
    """

    people: int = 72
    in_flight: int = 40
    deciders: int = 1
    pause_s: tuple[float, float] = (0.0, 0.1)
    granted_s: tuple[float, float] = (4.0, 18.0)
    revoked_s: tuple[float, float] = (0.1, 1.2)
    changes: int = 6
    probes: int = 3
    given_up: float = 0.3


@dataclass(slots=True)
class Tally:
    """What was seen.

    Args:
        decides: that were answered.
        unanswered: decides that were refused or had no answer.
        calm, calm_ranked: answers while no fault was under way, and how many of them were ranked.
        retries: answers to old request ids, ranked before, that were sent again after a Revoke.
        revokes: that returned.
        unknown: commands that never had an answer.
        p1: reads that no linearization allows and that used the profile.
        p2: answers emitted with the profile after a Revoke had returned, but for those counted as p1 or stalled.
        stalled: the same, by a replica that stood still while it decided: the stated residual.
        stale: refusals of somebody who had agreed that no linearization allows.
        unexpected: errors that are no outages: bugs of the product, though none that breaks a promise.
        refs: some of the calls counted as p1, p2 or stale, to look them up by.
        reasons: of all answers.
    """

    decides: int = 0
    unanswered: int = 0
    calm: int = 0
    calm_ranked: int = 0
    retries: int = 0
    grants: int = 0
    revokes: int = 0
    unknown: int = 0
    p1: int = 0
    p2: int = 0
    stalled: int = 0
    stale: int = 0
    unexpected: int = 0
    lives: int = 0
    refs: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def ranked_share(self) -> float:
        """Of the answers outside faults."""
        return self.calm_ranked / self.calm if self.calm else 0.0


UnderWay = Callable[[float, float], bool]
Stopped = Callable[[str, float, float], bool]


class Trial:
    """One run over a world.

    Args:
        under_way: whether a fault was under way at some moment of an interval.
        stopped: whether a process stood still at some moment of an interval.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        world: World,
        pace: Pace,
        *,
        seed: int = 0,
        under_way: UnderWay = lambda *_: False,
        stopped: Stopped = lambda *_: False,
    ) -> None:
        self.world = world
        self.pace = pace
        self.tally = Tally()
        self.stop = asyncio.Event()
        self.under_way = under_way
        self.stopped = stopped
        self.requests = Requests(["nobody"], seed=seed, candidates_count=CANDIDATES_COUNT)
        self.in_flight = asyncio.Semaphore(pace.in_flight)
        self.deciders: dict[str, Any] = {}
        self._seed = seed

    async def run(self, until: Callable[[Tally], bool], *, beside: Callable[[], Awaitable[None]]) -> Tally:
        """Live until *until* says that enough was seen, and *beside*, told by `stop`, has ended too."""
        stack = self.world.stack
        async with AsyncExitStack() as held:
            for name in stack.replicas("decision"):
                services = await held.enter_async_context(Services({"decision": stack.address(name)}))
                await services.warm("decision")
                self.deciders[name] = services.decision
            async with asyncio.TaskGroup() as group:
                for number in range(self.pace.people):
                    group.create_task(self._lives(number))
                aside = asyncio.ensure_future(beside())
                while not until(self.tally):
                    await asyncio.sleep(LOOK_EVERY_S)
                    if aside.done():
                        aside.result()  # raises what went wrong there
                self.stop.set()
                await aside
        return self.tally

    async def _lives(self, number: int) -> None:
        """One life after another."""
        generation = 0
        rng = random.Random(f"{self._seed}/{number}")
        while not self.stop.is_set():
            generation += 1
            await Life(self, f"p{self._seed}-{number}-{generation}", rng).live()

    def judge(self, history: Sequence[Call]) -> None:
        """Count what a life shows."""
        unlawful = violations(history)
        first = [one for one in unlawful if one.act is Act.DECIDE_PERSONAL]
        late = [one for one in emitted_after_revoke(history) if one not in first]
        stalled = [one for one in late if self.stopped(one.by, one.began_s, one.arrived_s)]
        tally = self.tally
        tally.lives += 1
        tally.p1 += len(first)
        tally.stale += len(unlawful) - len(first)
        tally.stalled += len(stalled)
        tally.p2 += len(late) - len(stalled)
        # A handful is enough to look the others up by.
        found = [*unlawful, *(one for one in late if one not in stalled)]
        tally.refs.extend(f"{one.act} {one.ref} by {one.by}" for one in found[: max(0, 20 - len(tally.refs))])


class Life:
    """One person from the first grant to the last revocation."""

    def __init__(self, trial: Trial, person: str, rng: random.Random) -> None:
        self._trial = trial
        self._pace = trial.pace
        self._person = person
        self._rng = rng
        self._history: list[Call] = []
        self._ended = asyncio.Event()
        self._number = rng.randrange(997)
        # A request that was answered with the profile: sent again after a Revoke it must get the default.
        self._ranked: decision_pb.DecideRequest | None = None

    async def live(self) -> None:
        """Change one's mind in turn while others decide; then be judged."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._pace.deciders):
                group.create_task(self._decide_on())
            try:
                for _ in range(self._pace.changes):
                    known = await self._change(Act.GRANT)
                    await asyncio.sleep(self._rng.uniform(*self._pace.granted_s))
                    known = await self._change(Act.REVOKE) and known
                    await self._probe()
                    await asyncio.sleep(self._rng.uniform(*self._pace.revoked_s))
                    if not known or self._trial.stop.is_set():
                        break
            finally:
                self._ended.set()
        self._trial.judge(self._history)

    async def _change(self, act: Act) -> bool:
        """Grant or revoke; False when it is not known whether it happened. What is given up is followed by another."""
        began_s = time.monotonic()
        answered = await self._settled(act)
        self._history.append(Call(act, began_s, time.monotonic() if answered else math.inf))
        tally = self._trial.tally
        if answered:
            tally.grants += act is Act.GRANT
            tally.revokes += act is Act.REVOKE
            return True
        tally.unknown += 1
        if act is Act.REVOKE:
            await self._change(act)
        return False

    async def _settled(self, act: Act) -> bool:
        """Send a command until it has an answer; False when it is given up."""
        consent = self._trial.world.services.consent
        method = consent.Record if act is Act.GRANT else consent.Revoke
        request: Any = grant_request(self._person) if act is Act.GRANT else revoke_request(self._person)
        give_up_at = time.monotonic() + SETTLE_S
        may_give_up = self._rng.random() < self._pace.given_up
        while True:
            try:
                await call(method, request, CHANGE_TIMEOUT_S)
                return True
            except ServiceError as error:
                self._trial.tally.unexpected += error.kind not in OUTAGES
                if error.kind not in (*OUTAGES, Kind.INTERNAL):
                    raise
                if may_give_up or time.monotonic() > give_up_at:
                    return False
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _probe(self) -> None:
        """Decide the moment a Revoke has returned, on every replica, and ask again what was answered before."""
        names = list(self._trial.deciders)
        self._rng.shuffle(names)
        asked: list[Awaitable[object]] = [
            self._decide(names[k % len(names)], self._next()) for k in range(self._pace.probes)
        ]
        old, self._ranked = self._ranked, None
        if old is not None:
            asked.append(self._retry(self._rng.choice(names), old))
        await asyncio.gather(*asked)

    async def _retry(self, name: str, request: decision_pb.DecideRequest) -> None:
        answered = await self._decide(name, request, keep=False)
        self._trial.tally.retries += answered

    async def _decide_on(self) -> None:
        """Decide until the life is over."""
        names = list(self._trial.deciders)
        while not self._ended.is_set():
            await asyncio.sleep(self._rng.uniform(*self._pace.pause_s))
            async with self._trial.in_flight:
                if not self._ended.is_set():
                    await self._decide(self._rng.choice(names), self._next())

    def _next(self) -> decision_pb.DecideRequest:
        self._number += 1
        return self._trial.requests.of(self._person, self._number)

    async def _decide(self, name: str, request: decision_pb.DecideRequest, *, keep: bool = True) -> bool:
        """One Decide on this replica; whether it was answered."""
        tally = self._trial.tally
        began_s = time.monotonic()
        calling = self._trial.deciders[name].Decide(request, timeout=DECIDE_TIMEOUT_S)
        try:
            answer = await calling
            trailers = await calling.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            kind = from_call_error(error).kind
            if kind not in (*OUTAGES, Kind.INTERNAL):
                raise
            tally.unexpected += kind is Kind.INTERNAL
            tally.unanswered += 1
            await asyncio.sleep(RETRY_PAUSE_S)
            return False
        arrived_s = time.monotonic()
        emitted_s = next((float(str(value)) for key, value in trailers if key == EMITTED), arrived_s)
        decision = answer.decisions[0]
        act = act_of(decision)
        self._history.append(Call(act, began_s, emitted_s, decision.decision_id, name, arrived_s))
        tally.decides += 1
        tally.reasons[answer_label(decision)] += 1
        if not self._trial.under_way(began_s, arrived_s):
            tally.calm += 1
            tally.calm_ranked += decision.reason == events_pb.REASON_RANKED
        if keep and act is Act.DECIDE_PERSONAL:
            self._ranked = request
        return True


def act_of(decision: decision_pb.PlacementDecision) -> Act:
    """What the answer says that consent was found to be."""
    if decision.reason in PERSONAL:
        return Act.DECIDE_PERSONAL
    if decision.fallback_reason == events_pb.FALLBACK_REASON_NO_CONSENT:
        return Act.DECIDE_REFUSED
    return Act.DECIDE_PLAIN
