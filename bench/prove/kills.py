"""G1, G3, G10: what was acknowledged survives SIGKILL, and has its effect exactly once.

Writers decide, say what was clicked, and remember every acknowledgement; a service or a server is killed again and
again in the middle. Afterwards the logs and the features are compared with what was acknowledged.
"""

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import numpy as np
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from bench.variants.probe import EFFECTS_TABLE_SQL
from bench.world import Requests, World
from cli.stack.provision import database_name, of_database
from services.chassis.errors import Kind, ServiceError
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.rpc_client import call

WRITERS_COUNT = 16
CALL_TIMEOUT_S = 1.0
ACKS_BETWEEN_KILLS = 120
QUIET_TIMEOUT_S = 120.0
POLL_S = 0.05
# Far shorter than the probe waits between an effect and its acknowledgement.
LOOK_S = 0.005
# Longer than anything waits before it is tried again: a delivery whose consumer was killed, a relay, a channel.
STILL_S = 60.0

# Told to the database alone: production code has no switch that weakens it.
# Every table, because one synchronous commit anywhere takes the others' to the disk with it.
SYNCHRONOUS_COMMIT_OFF = """
CREATE OR REPLACE FUNCTION weaken() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM set_config('synchronous_commit', 'off', true); RETURN NULL; END $$;
DO $$ DECLARE one text; BEGIN
    FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER weaken BEFORE INSERT OR UPDATE OR DELETE ON %I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION weaken()', one);
    END LOOP;
END $$;
"""
INBOX_OFF = """
CREATE OR REPLACE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN DELETE FROM inbox WHERE event_id = NEW.event_id; RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER forget AFTER INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION forget();
"""
EFFECTS_COUNT_SQL = "SELECT count(*) FROM effects"
STORED_DECISIONS = "SELECT stream_id FROM events WHERE type = 'comity.decision.v1.DecisionMade'"
STORED_BEHAVIOR_COUNT = "SELECT count(*) FROM events WHERE type = 'comity.feedback.v1.BehaviorRecorded'"
STORED_EVENTS = "SELECT count(*) FROM events"
STORED_OUTCOMES = "SELECT count(*) FROM events WHERE type = 'comity.feedback.v1.OutcomeAttributed'"


@dataclass(slots=True)
class Acknowledged:
    """What writers were told is recorded."""

    decisions: list[str] = field(default_factory=list)
    clicks: list[feedback_pb.TrackedEvent] = field(default_factory=list)
    unanswered_count: int = 0

    @property
    def count(self) -> int:
        """Of all kinds."""
        return len(self.decisions) + len(self.clicks)


async def prove(
    world: World, *, kills: int, victims: tuple[str, ...], weaken_probe: str = ""
) -> tuple[Acknowledged, "Found"]:
    """Write while each of *victims*, and a probing consumer, is killed *kills* times; then compare."""
    async with Probe(world, weaken_probe) as probe:
        told = await write_while(world, lambda told: _kill_all(world, told, victims, kills, probe))
        return told, await compare(world, told, probe)


async def write_while(world: World, during: Callable[[Acknowledged], Awaitable[None]]) -> Acknowledged:
    """What was acknowledged to the writers while *during* ran."""
    told = Acknowledged()
    writers = [asyncio.create_task(_write(world, told, number)) for number in range(WRITERS_COUNT)]
    try:
        await during(told)
    finally:
        for writer in writers:
            writer.cancel()
        for ended in await asyncio.gather(*writers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
    return told


async def _write(world: World, told: Acknowledged, writer: int) -> None:
    """Decide and click, for ever; what fails is not acknowledged and is only counted."""
    requests = Requests(world.people, seed=writer)
    number = writer
    while True:
        number += WRITERS_COUNT
        request = requests(number)
        try:
            answer = await call(world.services.decision.Decide, request, CALL_TIMEOUT_S)
            decision = answer.decisions[0]
            if not decision.exposure_token:
                told.unanswered_count += 1  # it said itself that it is not in the log
                await asyncio.sleep(0.01)
                continue
            told.decisions.append(decision.decision_id)
            if decision.fallback_reason == events_pb.FALLBACK_REASON_IDENTITY_UNAVAILABLE:
                continue  # made for nobody in particular: a click of somebody is no outcome of it
            shown = (decision.slate if decision.HasField("slate") else decision.fallback).entries
            click = feedback_pb.TrackedEvent(
                event_id=uuid.uuid4().hex,
                type="click",
                subject=types_pb.SubjectRef(identities=list(request.identities)),
                item_ids=[shown[0].item_id],
                decision_id=decision.decision_id,
                exposure_token=decision.exposure_token,
            )
            track = feedback_pb.TrackRequest(events=[click])
            tracked = await call(world.services.feedback.Track, track, CALL_TIMEOUT_S)
            if tracked.results[0].status == feedback_pb.TRACK_STATUS_ACCEPTED:
                told.clicks.append(click)
        except ServiceError as error:
            if error.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED):
                raise
            told.unanswered_count += 1
            await asyncio.sleep(0.01)


class Probe:
    """bench.variants.probe over feedback's events, with a database of its own.

    Args:
        script: switches a protection of the probe off.
    """

    def __init__(self, world: World, script: str) -> None:
        self._world = world
        self._script = script
        self._process: subprocess.Popen[bytes] | None = None
        self.url = urlunsplit(urlsplit(world.stack.postgres_url)._replace(path="/probe"))

    async def __aenter__(self) -> "Probe":
        admin = await asyncpg.connect(self._world.stack.postgres_url)
        try:
            await admin.execute("CREATE DATABASE probe")
        finally:
            await admin.close()
        await migrate(self.url, CHASSIS)
        await _execute(self.url, EFFECTS_TABLE_SQL)
        if self._script:
            await _execute(self.url, self._script)
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    async def kill(self) -> None:
        """End it between an effect and its acknowledgement, and start it again."""
        async with asyncio.timeout(QUIET_TIMEOUT_S):
            await self._until_effect()
        self._end()
        self._start()

    async def _until_effect(self) -> None:
        """Returns just after it had one; traffic must flow."""
        connection = await asyncpg.connect(self.url)
        try:
            before = await connection.fetchval(EFFECTS_COUNT_SQL)
            now = before
            while now == before:
                await asyncio.sleep(LOOK_S)
                now = await connection.fetchval(EFFECTS_COUNT_SQL)
        finally:
            await connection.close()

    async def counted(self) -> tuple[int, int]:
        """Effects, and events that had one."""
        connection = await asyncpg.connect(self.url)
        try:
            row = await connection.fetchrow("SELECT count(*), count(DISTINCT event_id) FROM effects")
        finally:
            await connection.close()
        assert row is not None, "an aggregate gives one row"
        return int(row[0]), int(row[1])

    def _start(self) -> None:
        arguments = (self.url, self._world.stack.nats_url, "feedback")
        self._process = subprocess.Popen([sys.executable, "-m", "bench.variants.probe", *arguments])

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


async def _kill_all(world: World, told: Acknowledged, victims: tuple[str, ...], kills: int, probe: "Probe") -> None:
    for victim in victims:
        for _ in range(kills):
            await _more_acknowledged(told, ACKS_BETWEEN_KILLS)
            # While traffic flows: it must have something to do.
            await probe.kill()
            await world.stack.kill(victim)
            await world.stack.restart(victim)
    await _more_acknowledged(told, ACKS_BETWEEN_KILLS)


async def _more_acknowledged(told: Acknowledged, count: int) -> None:
    """Returns once that many more acknowledgements came: traffic flows again."""
    goal = told.count + count
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while told.count < goal:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {count} acknowledgements in {QUIET_TIMEOUT_S:.0f} s: traffic does not flow again")
        await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Found:
    """What the comparison found.

    Args:
        lost: acknowledged and not in a log.
        doubled: clicks that features counted more than once, outcomes joined more than once, effects that the probe
            had more than once.
        missing: clicks that never reached features or were never joined, events that the probe never had.
    """

    lost: int
    doubled: int
    missing: int


async def compare(world: World, told: Acknowledged, probe: Probe) -> Found:
    """Compare logs and effects with what was acknowledged, once everything has settled."""
    stored = set(await _column(world, "decision", STORED_DECISIONS))
    lost_decisions = sum(decision_id not in stored for decision_id in told.decisions)
    behavior_count = await _value(world, "feedback", STORED_BEHAVIOR_COUNT)
    counted, outcomes = await _settled(world, behavior_count)
    lost_clicks = await _lost_clicks(world, told)
    effects, probed = await _probed(world, probe)
    events_count = await _value(world, "feedback", STORED_EVENTS)
    return Found(
        lost=lost_decisions + lost_clicks,
        doubled=max(0, counted - behavior_count) + max(0, outcomes - behavior_count) + effects - probed,
        missing=max(0, behavior_count - counted) + max(0, behavior_count - outcomes) + events_count - probed,
    )


async def _probed(world: World, probe: Probe) -> tuple[int, int]:
    """Effects and events of the probe, once it has had them all or stands still."""
    events_count = await _value(world, "feedback", STORED_EVENTS)
    return await _still(probe.counted, lambda counted: counted[1] >= events_count)


async def _settled(world: World, behavior_count: int) -> tuple[int, int]:
    """Clicks that features counted and outcomes that were joined, once they are complete or stand still."""

    async def count() -> tuple[int, int]:
        return await _counted_clicks(world), await _value(world, "feedback", STORED_OUTCOMES)

    return await _still(count, lambda now: min(now) >= behavior_count)


async def _still(
    count: Callable[[], Awaitable[tuple[int, int]]], is_complete: Callable[[tuple[int, int]], bool]
) -> tuple[int, int]:
    """What is counted, once it is complete or has not changed for so long that nothing more comes.

    However long it takes: a consumer that was killed again and again has much to catch up on, and is not to be called
    lossy because the machine is slow.
    """
    seen, still_since_s = await count(), time.monotonic()
    while not is_complete(seen) and time.monotonic() - still_since_s < STILL_S:
        await asyncio.sleep(POLL_S)
        now = await count()
        if now != seen:
            seen, still_since_s = now, time.monotonic()
    return seen


async def _lost_clicks(world: World, told: Acknowledged) -> int:
    """Acknowledged clicks that are taken as new when they are sent again."""
    lost = 0
    for start in range(0, len(told.clicks), 500):
        request = feedback_pb.TrackRequest(events=told.clicks[start : start + 500])
        answer = await call(world.services.feedback.Track, request, 30.0)
        lost += sum(result.status != feedback_pb.TRACK_STATUS_DUPLICATE for result in answer.results)
    return lost


async def _counted_clicks(world: World) -> int:
    """Sum over all items of the plain count of clicks, as decision would read it."""
    described = await call(world.services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest(), 10.0)
    feature_set = described.feature_set
    column = next(c for c in feature_set.columns if c.name == "clicks_plain")
    total = 0.0
    request = features_pb.GetItemColumnsRequest(feature_set_version=feature_set.version)
    async for chunk in world.services.features.GetItemColumns(request, timeout=10.0):
        rows = np.frombuffer(chunk.rows, "<f4").reshape(len(chunk.item_ids), feature_set.item_width)
        total += float(np.nansum(rows[:, column.item.offset]))
    return round(total)


async def _column(world: World, service: str, query: str) -> list[str]:
    connection = await asyncpg.connect(world.stack.database_url(service))
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def _value(world: World, service: str, query: str) -> int:
    connection = await asyncpg.connect(world.stack.database_url(service))
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def weaken(world: World, service: str, script: str) -> None:
    """Switch a protection off, in the service's database."""
    await _execute(of_database(world.stack.postgres_url, database_name(service)), script)


async def _execute(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()
