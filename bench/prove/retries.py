"""G18: an answer that proves itself is the log's decision, whatever was retried, hedged or rendered twice.

Attempts run under one id, one after another and at once, on two replicas, while the log is slow, held up, stopped and
killed, a replica dies, and identity is late. Afterwards every answer with a token or `learnable` is held against the
newest version of its decision, as consumers of the log were told it.
"""

import asyncio
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import asyncpg
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.connections import Services
from cli.stack import Stack
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call

CALLERS_COUNT = 12
# What a caller waits: mostly enough, sometimes far too little.
DEADLINES_S = (0.8, 0.8, 0.8, 0.1, 0.03)
# Of one id, round by round: when each attempt of the round begins, counted from the round's begin.
# Once, retried, hedged, rendered twice, retried twice at once, many at once.
ROUNDS: Sequence[Sequence[Sequence[float]]] = (
    ((0.0,),),
    ((0.0,), (0.0,)),
    ((0.0, 0.02),),
    ((0.0, 0.0),),
    ((0.0,), (0.0, 0.0, 0.01)),
    ((0.0, 0.0, 0.0, 0.005), (0.0,)),
)
PAUSE_S_MAX = 0.8
SHORT_COUNT = 8
# Postgres is back, and every service has found it again.
RECOVERY_S = 1.0
RESOLVED_TOGETHER = 100
HARM_S = (0.1, 0.9)
CALM_S = 0.6
SETUP_TIMEOUT_S = 60.0
STILL_S = 10.0
POLL_S = 0.1

MADE = "comity.decision.v1.DecisionMade"
BACKENDS_SQL = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'decision'"
COUNT_SQL = "SELECT count(*) FROM events"
HEAD_SQL = "SELECT epoch, xid, position FROM events ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1"
FOREIGN_SQL = f"""
SELECT count(*) FROM (
    SELECT FROM events WHERE type = '{MADE}' GROUP BY stream_id HAVING count(DISTINCT subject_id) > 1
) AS streams
"""

RequestOf = Callable[[int], decision_pb.DecideRequest]
Harm = Callable[["Trial"], Awaitable[None]]


@dataclass(slots=True)
class Told:
    """What the attempts under one decision's id were answered."""

    identity: types_pb.Identity
    answers: list[decision_pb.PlacementDecision] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """What the comparison found.

    Args:
        attempts: Decides that were sent.
        proving: answers with a token or `learnable`.
        differing: of those, what the log holds something else for, or nothing.
        foreign: decisions recorded for another member, or for two.
        ambiguous: ids under which a slate that stands and the default were both answered: only one can have been shown.
        unsaid: of those, what the log does not say so of: the attempt died with its replica before it could.
        taken_away: answers that said `learnable`, and are not any more, because they are ambiguous.
        unanswered: calls that failed or ended by their own deadline.
        not_replaying: of the decisions that were replayed.
        kinds: how often each harm came.
    """

    attempts: int = 0
    proving: int = 0
    differing: int = 0
    foreign: int = 0
    ambiguous: int = 0
    unsaid: int = 0
    taken_away: int = 0
    unanswered: int = 0
    decisions: int = 0
    not_replaying: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, float]:
        """Figures worth telling beside trials and failures."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("attempts", "kinds")}
        return {**plain, **{f"harm_{name}": count for name, count in self.kinds.items()}}


class Trial:
    """Callers, and what they were told.

    Args:
        request_of: a new request of a running number.
    """

    def __init__(self, stack: Stack, services: Services, request_of: RequestOf, *, seed: int) -> None:
        self.stack = stack
        self.services = services
        self.rng = random.Random(seed)
        self.found = Found()
        self.told: dict[str, Told] = {}
        self.request_of = request_of
        self._numbers = iter(range(1_000_000_000))

    async def run(self, attempts: int, harms: Sequence[Harm]) -> None:
        """Send so many attempts while the harms come in turn, each at least once."""
        done = asyncio.Event()
        harming = asyncio.create_task(self._harm(harms, done))
        callers = [asyncio.create_task(self._call(attempts, harming)) for _ in range(CALLERS_COUNT)]
        try:
            await asyncio.gather(*callers)
        finally:
            done.set()
            await harming

    async def _harm(self, harms: Sequence[Harm], done: asyncio.Event) -> None:
        brought = 0
        while not done.is_set() or brought < len(harms):
            harm = harms[brought % len(harms)]
            await harm(self)
            brought += 1
            self.found.kinds[harm.__name__] += 1
            await asyncio.sleep(CALM_S)

    async def _call(self, attempts: int, harming: "asyncio.Task[None]") -> None:
        while self.found.attempts < attempts and not harming.done():
            await self._decide(next(self._numbers), self.rng.choice(ROUNDS))
        if harming.done():
            await harming

    async def _decide(self, number: int, rounds: Sequence[Sequence[float]]) -> None:
        request = self.request_of(number)
        for delays_s in rounds:
            await asyncio.gather(*(self.attempt(request, delay_s) for delay_s in delays_s))
            await asyncio.sleep(self.rng.uniform(0.0, PAUSE_S_MAX) if len(rounds) > 1 else 0.0)

    async def attempt(
        self, request: decision_pb.DecideRequest, delay_s: float = 0.0, deadline_s: float = 0.0
    ) -> decision_pb.PlacementDecision:
        """One Decide of one placement, and what it was answered; empty where the call itself failed."""
        await asyncio.sleep(delay_s)
        self.found.attempts += 1
        try:
            response = await call(
                self.services.decision.Decide, request, deadline_s or self.rng.choice(DEADLINES_S), shave_s=0.0
            )
        except ServiceError:
            self.found.unanswered += 1
            return decision_pb.PlacementDecision()
        answer: decision_pb.PlacementDecision = response.decisions[0]
        self.told.setdefault(answer.decision_id, Told(request.identities[0])).answers.append(answer)
        return answer

    async def compare(self, *, replays: int) -> Found:
        """What was told against what consumers of the log have, once nothing comes any more."""
        await self._until_still()
        found, logged = self.found, await self._logged()
        members = await self._members()
        found.decisions = len(self.told)
        for decision_id, told in self.told.items():
            event = logged.get(decision_id)
            record = None if event is None else event.decision
            if (differing := _judge(told.answers, record, found)) and replays:
                print(f"G18 violated: {decision_id}: {differing}", file=sys.stderr)
            found.foreign += event is not None and event.subject_id not in ("", members[told.identity.value])
        async with self.database() as connection:
            found.foreign += int(await connection.fetchval(FOREIGN_SQL))
        both = sorted(logged.keys() & self.told.keys())
        for decision_id in self.rng.sample(both, min(replays, len(both))):
            asked = decision_pb.ReplayRequest(decision_id=decision_id)
            found.not_replaying += not (await call(self.services.decision.Replay, asked, SETUP_TIMEOUT_S)).identical
        return found

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        """A connection to decision's database; not decision's own."""
        connection = await asyncpg.connect(self.stack.database_url("decision"))
        try:
            yield connection
        finally:
            await connection.close()

    async def _until_still(self) -> None:
        """Returns once nothing was recorded for so long that no correction is on its way."""
        seen, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < STILL_S:
            async with self.database() as connection:
                count = int(await connection.fetchval(COUNT_SQL))
            if count != seen:
                seen, since_s = count, time.monotonic()
            await asyncio.sleep(POLL_S)

    async def _logged(self) -> dict[str, feedback_pb.ReplayedEvent]:
        """The newest version of each decision, as feedback replays it."""
        async with self.database() as connection:
            head = await connection.fetchrow(HEAD_SQL)
        position = types_pb.LogPosition(epoch=head[0], xid=head[1], position=head[2])
        await call(
            self.services.feedback.AwaitPosition,
            feedback_pb.AwaitPositionRequest(source="decision", position=position),
            SETUP_TIMEOUT_S,
        )
        asked = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_DECISION])
        events: dict[str, feedback_pb.ReplayedEvent] = {}
        async for response in self.services.feedback.ReplayEvents(asked, timeout=10 * SETUP_TIMEOUT_S):
            events.update((event.decision.decision_id, event) for event in response.events)
        return events

    async def _members(self) -> dict[str, str]:
        """The member of each person who was decided for, by name."""
        identities = {told.identity.value: told.identity for told in self.told.values()}
        names, members = sorted(identities), dict[str, str]()
        for start in range(0, len(names), RESOLVED_TOGETHER):
            some = names[start : start + RESOLVED_TOGETHER]
            queries = [identity_pb.ResolveQuery(identities=[identities[name]]) for name in some]
            asked = identity_pb.ResolveRequest(queries=queries)
            resolved = (await call(self.services.identity.Resolve, asked, SETUP_TIMEOUT_S)).subjects
            members.update((name, subject.member_id) for name, subject in zip(some, resolved, strict=True))
        return members


async def held_up(trial: Trial) -> None:
    """Nothing is read from the log and nothing written to it for a while."""
    await _locked(trial, trial.rng.uniform(*HARM_S))


async def slow(trial: Trial) -> None:
    """The log is held up again and again for about as long as a Decide may take."""
    for _ in range(SHORT_COUNT):
        await _locked(trial, trial.rng.uniform(0.01, 0.15))
        await asyncio.sleep(0.02)


async def stopped(trial: Trial) -> None:
    """Postgres' own processes for decision stand still, and go on in the middle of what they did."""
    async with trial.database() as connection:
        pids = [row["pid"] for row in await connection.fetch(BACKENDS_SQL)]
    try:
        _signal(pids, signal.SIGSTOP)
        await asyncio.sleep(trial.rng.uniform(*HARM_S))
    finally:
        _signal(pids, signal.SIGCONT)


async def killed(trial: Trial) -> None:
    """Postgres dies in the middle, and comes back."""
    await trial.stack.kill("postgres")
    await trial.stack.restart("postgres")
    await asyncio.sleep(RECOVERY_S)


async def replica_killed(trial: Trial) -> None:
    """A replica dies with what it had not settled; its attempts' answers may be on their way."""
    name = trial.rng.choice(trial.stack.replicas("decision"))
    await trial.stack.kill(name)
    await trial.stack.restart(name)


async def identity_late(trial: Trial) -> None:
    """First attempts are made for nobody, and their retries for somebody."""
    trial.stack.pause("identity")
    try:
        await asyncio.sleep(trial.rng.uniform(*HARM_S))
    finally:
        trial.stack.resume("identity")


ALL_HARMS: tuple[Harm, ...] = (held_up, identity_late, slow, stopped, identity_late, killed, replica_killed)
# For a stack that others use, too.
GENTLE_HARMS: tuple[Harm, ...] = (held_up, identity_late, slow, stopped)


async def _locked(trial: Trial, seconds: float) -> None:
    async with trial.database() as connection, connection.transaction():
        await connection.execute("LOCK TABLE events")
        await asyncio.sleep(seconds)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def retried_while_held_up(trial: Trial, *, times: int) -> None:
    """What the first design could not do, without chance: a decision is shown, and its retry meets a log held up."""
    for number in range(times):
        request = trial.request_of(number)
        while not (await trial.attempt(request, deadline_s=SETUP_TIMEOUT_S)).exposure_token:
            request.request_id = uuid.uuid4().hex
        async with trial.database() as connection, connection.transaction():
            await connection.execute("LOCK TABLE events")
            await trial.attempt(request, deadline_s=SETUP_TIMEOUT_S)


def _judge(answers: Sequence[decision_pb.PlacementDecision], record: Any, found: Found) -> list[str]:
    """Hold the answers under one id against the decision; what of those that prove themselves differs."""
    differing: list[str] = []
    shown = {_entries(answer) for answer in answers}
    for answer in answers:
        if not (answer.exposure_token or answer.learnable):
            continue
        found.proving += 1
        differences = ["the log has none"] if record is None else list(_differences(answer, record))
        if differences:
            found.differing += 1
            differing += differences
        elif answer.learnable and not record.learnable:
            found.taken_away += 1
    if record is not None and any(entries != _slate(record.slate) for entries in shown):
        found.ambiguous += 1
        found.unsaid += not record.default_also_answered or (
            record.learnable and record.activation == events_pb.ACTIVATION_IMMEDIATE
        )
    return differing


def _differences(answer: decision_pb.PlacementDecision, record: events_pb.DecisionMade) -> Iterator[str]:
    if _entries(answer) != _slate(record.slate):
        yield "entries or propensities"
    if (answer.reason, answer.fallback_reason) != (record.reason, record.fallback_reason):
        yield "reason"
    if answer.layer != record.consent.layer:
        yield "layer"
    if answer.learnable and not (record.learnable or record.default_also_answered):
        yield "learnable"


def _entries(answer: decision_pb.PlacementDecision) -> tuple[tuple[str, str, float], ...]:
    return _slate((answer.slate if answer.HasField("slate") else answer.fallback).entries)


def _slate(entries: Any) -> tuple[tuple[str, str, float], ...]:
    return tuple((entry.item_id, entry.variant_id, entry.propensity) for entry in entries)
