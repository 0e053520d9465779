"""G12: a read that is cancelled never leaves its answer to somebody else.

People are made to differ in everything that is read of them: pseudonym, ledger version, data key, feature vector,
state. What each is told in quiet is kept. Then many readers ask at once, most of them cancelled at a random moment of
their read, and every reply that does come must be what this very person was told before. The echo of a subject's id
would prove nothing: it is the content that is compared.

What is tried: the cache; the stores of consent and features over pools of few connections; decision's gathered
questions; and the methods themselves, cancelled by their caller, so that servers are cancelled in the middle.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.features.v1 import feature_set_pb2 as feature_set_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from comity.identity.v1 import identity_service_pb2_grpc as identity_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from bench.variants.mixing import ClosingRanks, SharedConnection
from cli.connections import Services
from cli.stack import Stack
from services.chassis.cache import RedisCache
from services.chassis.clock import SystemClock
from services.chassis.gather import Load
from services.chassis.postgres import Pool, create_pool
from services.chassis.rpc_client import call, connect
from services.consent.store.ledger import PostgresLedger
from services.consent.store.policies import PostgresPolicies
from services.decision import clients
from services.features.domain import members
from services.features.store import states as features_states
from services.features.store.books import Books

PEOPLE_COUNT = 16
READERS_COUNT = 32
CALL_TIMEOUT_S = 10.0
SETUP_TIMEOUT_S = 30.0
# Few, so that a connection which was left in disorder is taken up at once by somebody else.
POOL_SIZE = 4
# One read in so many is left alone: it says how long a read takes, and so when the others are cancelled.
LEFT_ALONE = 8
# Cancellations fall anywhere from before the first step to well after the answer.
LATE_FACTOR = 1.5
ANSWERED_MIN_SHARE = 0.02
STORMS_MAX = 20


@dataclass(frozen=True, slots=True)
class Site:
    """What of the applied site is used.

    Args:
        purposes: that people grant.
        event_type: that a feature of the subject counts.
        item_id: that the events are about.
        notice: version and language that people agree under; empty where the site declares none.
    """

    purposes: tuple[str, ...]
    event_type: str
    item_id: str
    notice: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read something of a person: `await ask(person)` gives what tells the person from all others."""

    name: str
    ask: Callable[["Somebody"], Awaitable[Hashable]]


@dataclass(frozen=True, slots=True)
class Somebody:
    """A person of the trial."""

    name: str
    subject_id: str

    @property
    def identity(self) -> types_pb.Identity:
        """As a backend names them."""
        return types_pb.Identity(namespace="user_id", value=self.name)


@dataclass(slots=True)
class Storm:
    """What came of one reader's reads.

    Args:
        mixed: replies that were not the person's own.
        failed: reads that ended in an error.
    """

    cancelled: int = 0
    answered: int = 0
    mixed: int = 0
    failed: int = 0


@dataclass(slots=True)
class Trial:
    """All that the readers share."""

    stack: Stack
    services: Services
    site: Site
    people: Sequence[Somebody]
    feature_set: feature_set_pb.FeatureSet
    as_of: Timestamp
    load: Load = field(default_factory=Load)


async def prepare(stack: Stack, services: Services, site: Site) -> Trial:
    """People who differ in everything that can be read of them."""
    names = [f"cancelled-{uuid.uuid4().hex}" for _ in range(PEOPLE_COUNT)]
    as_of = datetime.now(UTC)
    for number, name in enumerate(names):
        for _ in range(number + 1):
            await _grant(services, name, site)
    position = await _track(services, names, site, as_of - timedelta(hours=1))
    await call(
        services.features.AwaitPosition,
        features_pb.AwaitPositionRequest(source="feedback", position=position),
        SETUP_TIMEOUT_S,
    )
    queries = [identity_pb.ResolveQuery(identities=[Somebody(name, "").identity]) for name in names]
    resolved = await call(services.identity.Resolve, identity_pb.ResolveRequest(queries=queries), SETUP_TIMEOUT_S)
    described = await call(
        services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest(), SETUP_TIMEOUT_S
    )
    people = [Somebody(name, one.subject_id) for name, one in zip(names, resolved.subjects, strict=True)]
    moment = Timestamp()
    moment.FromDatetime(as_of)
    return Trial(stack, services, site, people, described.feature_set, moment)


async def _grant(services: Services, name: str, site: Site) -> None:
    version, language = site.notice
    request = consent_pb.RecordRequest(
        request_id=uuid.uuid4().hex,
        subject=types_pb.SubjectRef(identities=[Somebody(name, "").identity]),
        answers=[
            consent_pb.PurposeAnswer(purpose=purpose, state=consent_pb.CONSENT_STATE_GRANTED)
            for purpose in site.purposes
        ],
        notice_version=version,
        notice_language=language,
    )
    await call(services.consent.Record, request, SETUP_TIMEOUT_S)


async def _track(services: Services, names: Sequence[str], site: Site, at: datetime) -> types_pb.LogPosition:
    """One event of the first person, two of the second, …; the position behind them all."""
    moment = Timestamp()
    moment.FromDatetime(at)
    request = feedback_pb.TrackRequest(
        events=[
            feedback_pb.TrackedEvent(
                event_id=uuid.uuid4().hex,
                type=site.event_type,
                subject=types_pb.SubjectRef(identities=[Somebody(name, "").identity]),
                occurred_at=moment,
                item_ids=[site.item_id],
            )
            for number, name in enumerate(names)
            for _ in range(number + 1)
        ]
    )
    response = await call(services.feedback.Track, request, SETUP_TIMEOUT_S)
    statuses = {result.status for result in response.results}
    if statuses != {feedback_pb.TRACK_STATUS_ACCEPTED}:
        raise RuntimeError(f"events that tell people apart were not taken: {statuses}")
    position: types_pb.LogPosition = response.position
    return position


async def storm(trial: Trial, reader: Reader, *, cancels: int, seed: int) -> Storm:
    """Read and cancel until *cancels* reads were cut short; every reply is held against what was told in quiet."""
    expected = {person.name: await reader.ask(person) for person in trial.people}
    if len(set(expected.values())) < len(expected):
        raise RuntimeError(f"{reader.name} does not tell people apart: a mix-up would not be seen")
    found = Storm()
    pace = _Pace(random.Random(seed))
    async with asyncio.TaskGroup() as group:
        for _ in range(READERS_COUNT):
            group.create_task(_read_and_leave(trial, reader, expected, found, pace, cancels))
    if found.answered < ANSWERED_MIN_SHARE * cancels:
        raise RuntimeError(f"{reader.name}: only {found.answered} replies beside {found.cancelled} cancelled reads")
    return found


class _Pace:
    """When reads are cancelled: anywhere within the time that they take now."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.latency_s = 0.005
        self._count = 0

    def delay_s(self) -> float | None:
        """After how long the next read is cancelled; None: it is left alone."""
        self._count += 1
        if self._count % LEFT_ALONE == 0:
            return None
        return self.rng.uniform(0.0, LATE_FACTOR * self.latency_s)

    def took(self, seconds: float) -> None:
        """A read that was left alone took so long."""
        self.latency_s += 0.1 * (seconds - self.latency_s)


async def _read_and_leave(
    trial: Trial, reader: Reader, expected: Mapping[str, Hashable], found: Storm, pace: _Pace, cancels: int
) -> None:
    loop = asyncio.get_running_loop()
    while found.cancelled < cancels:
        person, delay_s = pace.rng.choice(trial.people), pace.delay_s()
        began_s = loop.time()
        reading = asyncio.ensure_future(reader.ask(person))
        timer = loop.call_later(delay_s, reading.cancel) if delay_s is not None else None
        await asyncio.wait([reading])
        if timer is not None:
            timer.cancel()
        if reading.cancelled():
            found.cancelled += 1
        elif reading.exception() is not None:
            # An outage is an honest answer, and anything else that goes wrong in a read is none of another's data.
            found.failed += 1
        else:
            found.answered += 1
            found.mixed += reading.result() != expected[person.name]
            if timer is None:
                pace.took(loop.time() - began_s)


@asynccontextmanager
async def readers(trial: Trial) -> AsyncIterator[list[Reader]]:
    """Every way to read a person: over gRPC, gathered as decision asks, and from the stores directly."""
    async with AsyncExitStack() as stack:
        pools = {name: await _pool(stack, trial, name) for name in ("consent", "features")}
        cache = RedisCache(trial.stack.redis_url, prefix="features:")
        stack.push_async_callback(cache.close)
        await _fill(trial, pools["features"], cache)
        yield [
            *_methods(trial),
            await _keys(stack, trial),
            *await _gathered(stack, trial),
            Reader("cache", lambda person: _cached(cache, person)),
            _states("states", pools["features"], cache),
            _snapshots(pools["consent"]),
        ]


async def _pool(stack: AsyncExitStack, trial: Trial, service: str) -> Pool:
    pool = await create_pool(trial.stack.database_url(service), size=POOL_SIZE, name="cancelled")
    stack.push_async_callback(pool.close)
    return pool


async def _fill(trial: Trial, pool: Pool, cache: Any) -> None:
    """Bring everybody's state into the cache: what is not there is not read from there."""
    await features_states.MemberStates(pool, cache).write_through([one.subject_id for one in trial.people])


def _methods(trial: Trial) -> list[Reader]:
    async def resolve(person: Somebody) -> Hashable:
        request = identity_pb.ResolveRequest(queries=[identity_pb.ResolveQuery(identities=[person.identity])])
        response = await call(trial.services.identity.Resolve, request, CALL_TIMEOUT_S)
        return str(response.subjects[0].subject_id)

    async def evaluate(person: Somebody) -> Hashable:
        query = consent_pb.EvaluateQuery(
            members=[types_pb.Member(subject_id=person.subject_id)], purposes=trial.site.purposes
        )
        request = consent_pb.EvaluateRequest(queries=[query])
        response = await call(trial.services.consent.Evaluate, request, CALL_TIMEOUT_S)
        return int(response.evaluations[0].consent_version)

    async def get_features(person: Somebody) -> Hashable:
        query = features_pb.FeatureQuery(
            subject_id=person.subject_id, member_ids=[person.subject_id], as_of=trial.as_of
        )
        request = features_pb.GetFeaturesRequest(feature_set_version=trial.feature_set.version, queries=[query])
        response = await call(trial.services.features.GetFeatures, request, CALL_TIMEOUT_S)
        return response.subjects[0].subject_id, response.subjects[0].vector

    return [Reader("Resolve", resolve), Reader("Evaluate", evaluate), Reader("GetFeatures", get_features)]


async def _keys(stack: AsyncExitStack, trial: Trial) -> Reader:
    """Data keys: what everything personal that is kept is sealed with."""
    channel = connect(trial.stack.addresses["identity"])
    stack.push_async_callback(channel.close)
    stub: Any = identity_grpc.KeyServiceStub(channel)

    async def get_key(person: Somebody) -> Hashable:
        request = identity_pb.GetDataKeysRequest(member_ids=[person.subject_id])
        response = await call(stub.GetDataKeys, request, CALL_TIMEOUT_S)
        return response.keys[0].key_id, response.keys[0].key

    return Reader("GetDataKeys", get_key)


async def _gathered(stack: AsyncExitStack, trial: Trial) -> list[Reader]:
    """Decision's own questions, through its gatherers."""
    channels = {name: connect(trial.stack.addresses[name]) for name in ("identity", "consent", "features")}
    for channel in channels.values():
        stack.push_async_callback(channel.close)
    identity = clients.IdentityClient(channels["identity"], trial.load)
    consent = clients.ConsentClient(channels["consent"], trial.load, budget_ms=0)
    features = clients.FeaturesClient(channels["features"], trial.load)
    as_of = trial.as_of.ToDatetime(UTC)
    known = {one.name: await identity.resolve((("user_id", one.name),)) for one in trial.people}

    async def resolve(person: Somebody) -> Hashable:
        with trial.load.active():
            return (await identity.resolve((("user_id", person.name),))).subject_id

    async def evaluate(person: Somebody) -> Hashable:
        with trial.load.active():
            return (await consent.evaluate(known[person.name].members, trial.site.purposes)).version

    async def read(person: Somebody) -> Hashable:
        with trial.load.active():
            profile = await features.read(trial.feature_set.version, known[person.name], as_of)
        return profile.subject.vector.tobytes()

    return [
        Reader("gathered_resolve", resolve),
        Reader("gathered_evaluate", evaluate),
        Reader("gathered_features", read),
    ]


async def _cached(cache: Any, person: Somebody) -> Hashable:
    (value,) = await cache.get_many([f"member:{person.subject_id}"])
    return bytes(value)


def _states(name: str, pool: Pool, cache: Any) -> Reader:
    books, states = Books(pool, SystemClock()), features_states.MemberStates(pool, cache)

    async def read(person: Somebody) -> Hashable:
        book = books.book if books.book.active else await books.refresh()
        state = (await states.read(book, [person.subject_id]))[person.subject_id]
        return state.counts.tobytes()

    return Reader(name, read)


def _snapshots(pool: Pool) -> Reader:
    ledger = PostgresLedger(pool, pool, PostgresPolicies(pool, SystemClock()))

    async def read(person: Somebody) -> Hashable:
        snapshot = await ledger.snapshot([person.subject_id])
        standings = snapshot.standings[person.subject_id]
        return max(standing.consent_version for standing in standings.values())

    return Reader("snapshots", read)


async def prove(trial: Trial, *, cancels: int, seed: int) -> dict[str, Storm]:
    """A storm over every reader, *cancels* in all; also over states behind a connection that mixes replies up.

    There the check alone protects: each state says whose it is, and another's is read again from the database.
    """
    async with readers(trial) as known, _mixing(trial) as (_, checked):
        every = [*known, checked]
        share = -(-cancels // len(every))
        return {one.name: await storm(trial, one, cancels=share, seed=seed) for one in every}


async def teeth(trial: Trial, *, cancels: int, seed: int) -> dict[str, int]:
    """Mixed replies that the same storm finds where a protection is missing."""
    found = {}
    async with _mixing(trial) as (shared, _):
        found["shared_connection"] = await _mixed(trial, shared, cancels=cancels, seed=seed)
    async with _mixing(trial) as (_, unchecked):
        with patch.object(features_states, "decode", _decode_anybody):
            found["subject_check_off"] = await _mixed(trial, unchecked, cancels=cancels, seed=seed)
    async with AsyncExitStack() as stack:
        with patch.object(clients, "Gatherer", ClosingRanks):
            gathered = await _gathered(stack, trial)
        found["gatherer_closing_ranks"] = sum(
            [await _mixed(trial, one, cancels=cancels, seed=seed) for one in gathered]
        )
    return found


async def _mixed(trial: Trial, reader: Reader, *, cancels: int, seed: int) -> int:
    """Mixed replies of the first storm that finds any: on a busy machine one may cancel nothing at the wrong moment."""
    for again in range(STORMS_MAX):
        found = await storm(trial, reader, cancels=cancels, seed=seed + again)
        if found.mixed:
            return found.mixed
    return 0


@asynccontextmanager
async def _mixing(trial: Trial) -> AsyncIterator[tuple[Reader, Reader]]:
    """The connection that mixes replies up, read as it is and behind features' store."""
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, trial, "features")
        real = RedisCache(trial.stack.redis_url, prefix="features:")
        stack.push_async_callback(real.close)
        await _fill(trial, pool, real)
        cache = SharedConnection(trial.stack.redis_url, prefix="features:")
        stack.push_async_callback(cache.close)
        yield (
            Reader("shared_connection", lambda person: _cached(cache, person)),
            _states("states_over_shared_connection", pool, cache),
        )


def _decode_anybody(layout: Any, blob: bytes, _: str, layouts: Any = None) -> members.MemberState:
    """As the store's decode, without asking whose state it is."""
    own: str = members.HEADER.unpack_from(blob)[1].decode()
    return members.decode(layout, blob, own, layouts)
