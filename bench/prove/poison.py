"""G19: what cannot be read stops nobody.

Rows, events and messages that nobody can read are put into every log, every table that is read in pages and every
stream of a running stack. Then people go on deciding and clicking, feedback is started again, somebody is erased: all
of it must come out as though the poison were not there, and every piece of it must be listed as a dead letter.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import nats
from comity.common.v1 import events_pb2 as common_pb
from comity.common.v1 import operations_pb2 as operations_pb
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import privacy_service_pb2 as privacy_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from bench.prove.proof import Proof
from bench.ranker import activate_noise
from bench.world import Requests, World, answer_label, identity, world
from cli.connections import Services
from cli.privacy.calls import until_erased
from cli.stack import SERVICES, Stack
from learning.log import replay_log
from services.chassis.errors import ServiceError
from services.chassis.ids import uuid7
from services.chassis.rpc_client import call

TIMEOUT_S = 30.0
DECIDE_TIMEOUT_S = 5.0
JOINED_WITHIN_S = 60.0
# Long enough for whoever crashes at the poison to have crashed, and short enough for a person to wait.
TEETH_WITHIN_S = 15.0
TOLD_WITHIN_S = 60.0
POLL_S = 0.2
# Feedback was just started again, and crashes for ever where it reads a page whole or not at all.
TRACK_TRIES_MAX = 10
TAKEN_IN = (feedback_pb.TRACK_STATUS_ACCEPTED, feedback_pb.TRACK_STATUS_DUPLICATE)
TREES_COUNT = 50
TEETH_DECIDES = 20
OFFICER = types_pb.Access(accessor="proof", reason="G19")
# A member that nobody is.
NOBODY = "p" * 26

# A type that each service emits, as its own consumers know it.
TYPES = {
    "identity": "comity.identity.v1.IdentityLinked",
    "consent": "comity.consent.v1.ConsentRevoked",
    "features": "comity.features.v1.FeatureSetPublished",
    "decision": "comity.decision.v1.DecisionMade",
    "feedback": "comity.feedback.v1.BehaviorRecorded",
}
# Who takes a service's events in, by the type that they are sent under.
CONSUMERS = {
    ("decision", "comity.decision.v1.DecisionMade"): "feedback",
    ("decision", "comity.decision.v1.CatalogChanged"): "features",
    ("feedback", "comity.feedback.v1.BehaviorRecorded"): "features",
}
EVENT_SQL = """
INSERT INTO events (epoch, event_id, stream_id, version, type, subject_id, occurred_at, key_id, nonce, payload,
                    traceparent)
SELECT epoch, $1::text::uuid, $1::text, 1, $2, $3, now(), $4, $5, $6, '' FROM log_epoch
"""
FACT_SQL = """
INSERT INTO decision_facts (decision_id, version, event_id, member_id, decided_at, key_id, nonce, payload, epoch, xid,
                            position, arrival_epoch)
SELECT $1::text, 2, $1::text::uuid, $2, now(), $3, $4, $5, 1, '1', 1, epoch FROM log_epoch
"""
# Of tables that are read in pages; each is one that nothing else names, and is told with its place.
ROWS = {
    "features": (
        ("items/poison", "INSERT INTO items (id, item) VALUES ('poison', 'no item')"),
        (
            "item_blocks/poison/0",
            "INSERT INTO item_blocks (item_id, partition, state) VALUES ('poison', 0, 'no state')",
        ),
    ),
    "decision": (
        (
            "items/poison",
            "INSERT INTO items (item_id, catalog_version, item) "
            "SELECT 'poison', catalog_version + 1, 'no item' FROM standing",
        ),
    ),
    "identity": (
        ("data_keys", f"INSERT INTO data_keys (member_id, key_id, wrapped) VALUES ('{NOBODY}', 'no key', 'no key')"),
    ),
}
CATALOG_MOVED_SQL = "UPDATE standing SET catalog_version = catalog_version + 1"


@dataclass(slots=True)
class Planted:
    """What was put where, as it has to be told.

    Args:
        events: (service that tells it, event id).
        places: (service that tells it, table/key).
        messages: how many of a message's pieces without a name each service has to tell.
    """

    events: list[tuple[str, str]] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Of all kinds."""
        return len(self.events) + len(self.places) + sum(self.messages.values())


@dataclass(frozen=True, slots=True)
class Tried:
    """What one trial found.

    Args:
        decides: decisions and clicks after the poison.
        unjoined: of those that never got their outcome.
        unreplayed: of those that a replay did not give out.
        untold: pieces of poison that no dead letter tells of.
    """

    planted: int
    decides: int
    unjoined: int
    unreplayed: int
    untold: int
    erased: bool

    @property
    def failures(self) -> int:
        """Everything that did not go on, or was not told."""
        return self.unjoined + self.unreplayed + self.untold + (not self.erased)


async def prove(folder: Path, *, decides: int) -> Proof:
    """The promise at this size; a feedback that takes a page whole or not at all must be caught."""
    async with _ready(folder / "right") as ready:
        right = await try_poison(ready, decides=decides, within_s=JOINED_WITHIN_S)
    async with _ready(folder / "wrong", variants={"feedback": "all_or_nothing"}) as ready:
        wrong = await _starved(ready)
    return Proof(
        trials=right.planted + right.decides,
        failures=right.failures,
        teeth={"whole_batch_raises": wrong},
        facts={
            "planted": right.planted,
            "untold": right.untold,
            "unjoined": right.unjoined,
            "unreplayed": right.unreplayed,
            "not_erased": int(not right.erased),
        },
    )


async def try_poison(ready: World, *, decides: int, within_s: float) -> Tried:
    """Plant everything, go on, and look at what became of it."""
    before = await _act(ready, decides // 2)
    planted = await plant(ready.stack)
    await ready.stack.restart("feedback")
    made = {*before, *await _act(ready, decides - decides // 2)}
    unjoined = await _unjoined(ready, made, within_s=within_s)
    replayed = await _replayed(ready)
    erased = await _erase(ready, ready.people[0])
    return Tried(
        planted=planted.count,
        decides=len(made),
        unjoined=unjoined,
        unreplayed=len(made - replayed),
        untold=await untold(ready.services, planted),
        erased=erased,
    )


async def plant(stack: Stack) -> Planted:
    """Put poison into every service's log, tables and stream."""
    planted = Planted()
    for service in SERVICES:
        connection = await asyncpg.connect(stack.database_url(service))
        try:
            await _plant_rows(connection, service, planted)
        finally:
            await connection.close()
    client = await nats.connect(stack.nats_url)
    try:
        await _plant_messages(client.jetstream(), planted)
    finally:
        await client.close()
    return planted


async def _plant_rows(connection: asyncpg.Connection, service: str, planted: Planted) -> None:
    """Events that hold nothing, that are sealed for nobody, and that no channel is named after; and broken rows."""
    # Consent's events are taken in by nobody else; its own journal reads them.
    consumer = CONSUMERS.get((service, TYPES[service]), "consent" if service == "consent" else None)
    for sealed in (False, True):
        event_id = _new_id()
        key = ("no key", b"n" * 12) if sealed else (None, None)
        await connection.execute(EVENT_SQL, event_id, TYPES[service], NOBODY if sealed else "", *key, b"no message")
        # Feedback keeps decisions as they come, and reads them when they are joined; others read what they take in.
        if consumer is not None:
            planted.events.append((consumer, event_id))
    event_id = _new_id()
    await connection.execute(EVENT_SQL, event_id, "no type.", "", None, None, b"no message")
    planted.events.append((service, event_id))
    if service == "feedback":
        for member_id, key in (("", ("no key", b"n" * 12)), (NOBODY, (None, None))):
            event_id = _new_id()
            await connection.execute(FACT_SQL, event_id, member_id, *key, b"no decision")
            planted.events.append((service, event_id))
    for place, sql in ROWS.get(service, ()):
        await connection.execute(sql)
        planted.places.append((service, place))
    if service == "decision":
        await connection.execute(CATALOG_MOVED_SQL)


async def _plant_messages(jetstream: nats.js.JetStreamContext, planted: Planted) -> None:
    """Messages that are none, events in them that have no name, and one that names what no database can."""
    for (source, type_name), consumer in CONSUMERS.items():
        channel = f"ev.v1.0.{source}.{type_name.rpartition('.')[2]}"
        nameless = common_pb.Event(event_id="no id", type=type_name)
        unspeakable = common_pb.Event(event_id=_new_id(), type=type_name, subject_id="p\x00")
        batches = [common_pb.EventBatch(events=[one]).SerializeToString() for one in (nameless, unspeakable)]
        for payload in (b"no batch \xff", *batches):
            await jetstream.publish(channel, payload, headers={"Nats-Msg-Id": uuid.uuid4().hex})
        planted.messages[consumer] = planted.messages.get(consumer, 0) + 1 + len(batches)


async def untold(services: Services, planted: Planted) -> int:
    """Pieces of poison that no dead letter tells of, once it is clear that none will."""
    until = time.monotonic() + TOLD_WITHIN_S
    while True:
        missing = await _missing(services, planted)
        if not missing or time.monotonic() > until:
            return missing
        await asyncio.sleep(POLL_S)


async def _missing(services: Services, planted: Planted) -> int:
    letters = {service: await letters_of(services, service) for service in SERVICES}
    events = {(service, letter.event_id) for service, some in letters.items() for letter in some}
    places = {(service, letter.channel) for service, some in letters.items() for letter in some}
    nameless = {
        service: sum(letter.reason == "UNDECODABLE" and not letter.event_id for letter in some)
        for service, some in letters.items()
    }
    return (
        len(set(planted.events) - events)
        + len(set(planted.places) - places)
        + sum(max(0, count - nameless[service]) for service, count in planted.messages.items())
    )


async def letters_of(services: Services, service: str) -> Sequence[operations_pb.DeadLetter]:
    """What the service put aside."""
    request = operations_pb.ListDeadLettersRequest()
    answer = await call(services.operations(service).ListDeadLetters, request, TIMEOUT_S)
    return list(answer.letters)


def _new_id() -> str:
    return uuid7(datetime.now(UTC))


@asynccontextmanager
async def _ready(folder: Path, *, variants: dict[str, str] | None = None) -> AsyncIterator[World]:
    async with world(folder, people_count=20, variants=variants or {}, disposable=True, holdout_share=0.0) as ready:
        await activate_noise(ready.services, trees_count=TREES_COUNT)
        yield ready


async def _starved(ready: World) -> int:
    """Decisions that get no outcome where one row that cannot be read fails its page."""
    await plant(ready.stack)
    return await _unjoined(ready, await _act(ready, TEETH_DECIDES), within_s=TEETH_WITHIN_S)


async def _act(ready: World, count: int) -> set[str]:
    """Decide and click; the decisions that were clicked on."""
    requests, made = Requests(ready.people), set[str]()
    for number in range(count):
        request = requests(number)
        decision = (await call(ready.services.decision.Decide, request, DECIDE_TIMEOUT_S)).decisions[0]
        # Without a token it is not in the log; made for nobody in particular, somebody's click is no outcome of it.
        if not decision.exposure_token or answer_label(decision) == "IDENTITY_UNAVAILABLE":
            continue
        shown = (decision.slate if decision.HasField("slate") else decision.fallback).entries
        click = feedback_pb.TrackedEvent(
            event_id=uuid.uuid4().hex,
            type="click",
            subject=types_pb.SubjectRef(identities=list(request.identities)),
            item_ids=[shown[0].item_id],
            decision_id=decision.decision_id,
            exposure_token=decision.exposure_token,
        )
        if await _track(ready, click):
            made.add(decision.decision_id)
    return made


async def _track(ready: World, click: feedback_pb.TrackedEvent) -> bool:
    """Whether the click has to have its outcome: it was taken in, or feedback would not even do that."""
    request = feedback_pb.TrackRequest(events=[click])
    for _ in range(TRACK_TRIES_MAX):
        with suppress(ServiceError):
            answer = await call(ready.services.feedback.Track, request, TIMEOUT_S)
            return answer.results[0].status in TAKEN_IN
        await asyncio.sleep(POLL_S)
    return True


async def _unjoined(ready: World, made: set[str], *, within_s: float) -> int:
    """Decisions without an outcome, once all have one or the time is over."""
    until = time.monotonic() + within_s
    missing = made
    while missing and time.monotonic() < until:
        await asyncio.sleep(POLL_S)
        try:
            missing = made - await _joined(ready)
        except ServiceError:
            continue
    return len(missing)


async def _joined(ready: World) -> set[str]:
    request = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_OUTCOME])
    return {
        event.outcome.decision_id
        async for page in replay_log(ready.services.feedback, request)
        for event in page.events
    }


async def _replayed(ready: World) -> set[str]:
    request = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_DECISION])
    return {
        event.decision.decision_id
        async for page in replay_log(ready.services.feedback, request)
        for event in page.events
    }


async def _erase(ready: World, person: str) -> bool:
    """Whether somebody can still be erased."""
    request = privacy_pb.EraseRequest(
        request_id=uuid.uuid4().hex, subject=types_pb.SubjectRef(identities=[identity(person)]), access=OFFICER
    )
    begun = await call(ready.services.privacy.Erase, request, TIMEOUT_S)
    try:
        async with asyncio.timeout(JOINED_WITHIN_S):
            await until_erased(ready.services, begun.erasure_id, lambda _: None)
    except TimeoutError:
        return False
    return True
