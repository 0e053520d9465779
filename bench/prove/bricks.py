"""No stored thing keeps a service from starting: each kind is made unreadable, or hostile, in the database.

The service is started again on it. It has to start, to serve, and to say what it goes without; once the row is mended
it has to be as before, without another start. HOLDS says of every table of every service how it is loaded, so that a
table which nobody thought of is missed by a test.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
from comity.common.v1 import operations_pb2 as operations_pb
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from bench.prove.poison import letters_of
from bench.prove.proof import Proof
from bench.ranker import activate_noise
from bench.site import PLACEMENT, PURPOSE, write_bundle
from bench.world import VariantStack, World, world
from cli.bundle import apply_bundle, load_bundle
from cli.connections import Services
from cli.stack import SERVICES, Stack
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call

TIMEOUT_S = 10.0
# A service that was started again, found by those that ask it, on a busy machine; and what it says of itself.
WITHIN_S = 60.0
# For what must never come.
TEETH_WITHIN_S = 15.0
POLL_S = 0.2
TREES_COUNT = 50
NOBODY = "b" * 26
UNUSABLE = "stored_unusable"
# What a caller gets of a service that does not serve.
BROKEN = (Kind.UNAVAILABLE, Kind.DEADLINE, Kind.INTERNAL)

# What becomes of bytes: noise, nothing, all but the last. A half may be a shorter message, which nothing can tell.
RUINS = ("'\\xff'", "''", "substring({column} for octet_length({column}) - 1)")
CHASSIS = {
    "events": "read in pages; what cannot be read is put aside (G19)",
    "commands": "asked for by the command that is repeated",
    "log_epoch": "written by migrations, before anything is loaded",
    "schema_migrations": "migrations refuse what is not theirs",
    "inbox": "only asked whether an id is there",
    "inbox_positions": "of another's log: what is delivered next does not depend on them",
    "dead_letters": "counted, and shown as they are",
    "erased_members": "only asked whether a member is there",
    "erased_counts": "summed up when an erasure is done again",
    "erasures_applied": "brick",
    "relay_checkpoint": "brick",
    "reconciler_state": "brick",
}
# Every table: a brick of BRICKS, or why it can be none.
HOLDS: Mapping[str, Mapping[str, str]] = {
    "identity": {
        "links": "read for those who are asked about",
        "link_members": "read for those who are asked about",
        "link_streams": "read for those who are asked about",
        "subject_members": "read for those who are asked about",
        "data_keys": "read for those who are asked about; what does not open is put aside (G19)",
        "secret_fingerprints": "refuses to start with other secrets than the data was made with: everybody would be "
        "somebody else",
        "placeholders": "any text is one",
    },
    "consent": {
        "policy_purposes": "texts and numbers, any of which is one; of none of them: active_policy",
        "policy_controllers": "any text is one",
        "active_policy": "brick",
        "policy_terms": "brick",
        "policy_notices": "brick",
        "policy_jurisdictions": "brick",
        "consent_state": "read for those who are asked about",
        "erasures": "each is continued on its own",
        "erasure_steps": "a step that cannot be read is taken again",
        "journal_position": "brick",
    },
    "features": {
        "feature_sets": "brick",
        "active_feature_set": "names a set that is there",
        "member_states": "read for those who are asked about; as though there were none, and counted",
        "item_blocks": "brick",
        "items": "brick",
        "item_versions": "passed over; what waits is folded when the item is brought again",
        "pending_items": "texts and numbers, any of which is one",
        "withdrawn_members": "only asked whether a member is there",
        "cache_generation": "brick",
    },
    "decision": {
        "sites": "brick",
        "items": "brick",
        "models": "brick",
        "active_models": "names a model that is there",
        "stopped_models": "names a model that is there",
        "model_verdicts": "any text is a verdict, and one that is missing is found again",
        "model_members": "read by an erasure",
        "standing": "brick",
    },
    "feedback": {
        "event_schemas": "brick",
        "decision_facts": "read in pages; what cannot be read is put aside (G19)",
        "pending_outcomes": "texts and times, any of which is one",
        "join_positions": "brick",
        "rectifications": "asked for by the command that is repeated",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Brick:
    """A kind of stored thing, made unusable.

    Args:
        plant: statements that make it so.
        mend: those that put it right; empty where the service does by itself.
        alarm: that has to stand until it is mended; empty where a dead letter says it.
        place: that a dead letter has to begin with; empty where an alarm alone says it, or nothing is lost.
        hides: tables of which nothing is read then.
    """

    service: str
    table: str
    plant: tuple[str, ...]
    mend: tuple[str, ...] = ()
    alarm: str = ""
    place: str = ""
    hides: str = ""


def ruined(service: str, table: str, column: str, keys: str, where: str, ruin: str, **told: str) -> Brick:
    """Bytes of a table put in ruins, and back."""
    saved = f"saved_{table}_{column}"
    joined = " AND ".join(f"t.{key} = s.{key}" for key in keys.split())
    return Brick(
        service,
        table,
        (
            f"CREATE TABLE {saved} AS SELECT * FROM {table} WHERE {where}",
            f"UPDATE {table} SET {column} = {ruin.format(column=column)} WHERE {where}",
        ),
        (f"UPDATE {table} t SET {column} = s.{column} FROM {saved} s WHERE {joined}", f"DROP TABLE {saved}"),
        **told,
    )


def added(service: str, table: str, values: str, where: str, **told: str) -> Brick:
    """A row that is put there and taken away again."""
    return Brick(service, table, (f"INSERT INTO {table} {values}",), (f"DELETE FROM {table} WHERE {where}",), **told)


def bricks_of(ruin: str) -> tuple[Brick, ...]:
    """Every kind of stored thing that is loaded at a start, or by a loop."""
    site, any_item = "site_version = (SELECT site_version FROM standing)", "(SELECT min({}) FROM items)"
    far = "epoch = 99, xid = '4611686018427387904'"
    # A model that was refused is tried again once it is activated again.
    refused = ruined("decision", "models", "onnx", "name sha256", "true", ruin, alarm="model_stopped")
    return (
        ruined("decision", "sites", "site", "site_version", site, ruin, alarm=UNUSABLE, place="sites/"),
        ruined("decision", "sites", "feature_set", "site_version", site, ruin, alarm=UNUSABLE, place="sites/"),
        ruined("decision", "items", "item", "item_id catalog_version", f"item_id = {any_item.format('item_id')}",
               ruin, place="items/"),
        replace(refused, mend=(*refused.mend, "UPDATE active_models SET activated_at = now()")),
        Brick(
            "decision", "standing",
            ("CREATE TABLE saved_standing AS TABLE standing", "UPDATE standing SET site_version = 'lost'"),
            ("UPDATE standing t SET site_version = s.site_version FROM saved_standing s", "DROP TABLE saved_standing"),
            alarm=UNUSABLE,
        ),
        ruined("features", "feature_sets", "feature_set", "version", "true", ruin, place="feature_sets/"),
        ruined("features", "items", "item", "id", f"id = {any_item.format('id')}", ruin, place="items/"),
        added("features", "item_blocks", "(item_id, partition, state) VALUES ('brick', 0, '\\xff')",
              "item_id = 'brick'", place="item_blocks/brick"),
        Brick("features", "cache_generation", ("UPDATE cache_generation SET generation = -9223372036854775808",),
              ("UPDATE cache_generation SET generation = 1",)),
        Brick("features", "cache_generation", ("DELETE FROM cache_generation",),
              ("INSERT INTO cache_generation (generation) VALUES (1)",)),
        added("consent", "policy_jurisdictions", "SELECT policy_version, 'brick', '\\xff' FROM active_policy",
              "jurisdiction = 'brick'", alarm=UNUSABLE, place="policy_jurisdictions/"),
        added("consent", "policy_notices", "SELECT policy_version, 'brick', '\\xff' FROM active_policy",
              "notice_version = 'brick'", alarm=UNUSABLE, place="policy_notices/"),
        added("consent", "policy_terms", "SELECT policy_version, 'brick', true, '\\xff' FROM active_policy",
              "purpose = 'brick'", alarm=UNUSABLE, place="policy_terms/"),
        Brick(
            "consent", "active_policy",
            ("CREATE TABLE saved_policy AS TABLE active_policy", "UPDATE active_policy SET policy_version = 'lost'"),
            ("UPDATE active_policy t SET policy_version = s.policy_version FROM saved_policy s",
             "DROP TABLE saved_policy"),
            alarm=UNUSABLE, hides="policy_jurisdictions policy_notices policy_terms",
        ),
        Brick("consent", "journal_position", (f"UPDATE journal_position SET number = 7, size_bytes = -5, {far}",)),
        ruined("feedback", "event_schemas", "schema", "type", "type = 'exposure'", ruin, alarm=UNUSABLE,
               place="event_schemas/"),
        Brick(
            "feedback", "join_positions",
            ("INSERT INTO join_positions VALUES ('answers', 99, '4611686018427387904', 1) ON CONFLICT (reader) "
             f"DO UPDATE SET {far}",),
            place="join_positions/",
        ),
        *(
            Brick(
                service, "relay_checkpoint",
                (f"INSERT INTO relay_checkpoint VALUES ('{service}', 99, '4611686018427387904', 1) "
                 f"ON CONFLICT (service) DO UPDATE SET {far}",),
                place="relay_checkpoint/",
            )
            for service in SERVICES
        ),
        *(
            Brick(service, "reconciler_state", ("UPDATE reconciler_state SET compared_until = 'infinity'",))
            for service in SERVICES
        ),
        *(
            Brick(service, "erasures_applied", ("UPDATE erasures_applied SET number = -7",))
            for service in SERVICES
            if service != "consent"
        ),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of bricks.

    Args:
        down: services that did not start, or did not serve.
        untold: bricks that nobody told of.
        kept: those that were still told of when they were mended.
    """

    bricks: int = 0
    down: int = 0
    untold: int = 0
    kept: int = 0

    def __add__(self, other: "Tried") -> "Tried":
        return Tried(
            self.bricks + other.bricks, self.down + other.down, self.untold + other.untold, self.kept + other.kept
        )

    @property
    def failures(self) -> int:
        """Everything that was not as it should be."""
        return self.down + self.untold + self.kept


async def prove(folder: Path, *, apart: bool) -> Proof:
    """The promise; *apart*: each brick by itself and in every ruin, else those of a service at once."""
    async with world(folder / "data", people_count=5, disposable=True) as ready:
        # A site before, to go on with.
        bundle, feed = write_bundle(folder / "bundle", holdout_share=0.0)
        await apply_bundle(load_bundle(bundle, feed=feed), ready.services)
        await activate_noise(ready.services, trees_count=TREES_COUNT)
        found = Tried()
        for ruin in RUINS if apart else RUINS[:1]:
            found += await _try_all(ready, ruin, apart=apart)
        right = await is_served(ready.services, within_s=WITHIN_S)
        teeth = {
            "unreadable_ends_the_start": (await _bitten(ready, "features", "brittle")).down,
            "nothing_is_told": (await _bitten(ready, "decision", "mute")).untold,
        }
    return Proof(
        trials=found.bricks,
        failures=found.failures + (not right),
        teeth=teeth,
        facts={"down": found.down, "untold": found.untold, "kept": found.kept},
    )


async def _try_all(ready: World, ruin: str, *, apart: bool) -> Tried:
    found, every = Tried(), bricks_of(ruin)
    for service in SERVICES:
        own = [brick for brick in every if brick.service == service]
        # What two bricks change in one row they change one after the other.
        for part in [[brick] for brick in own] if apart else rounds(own):
            found += await try_bricks(ready.stack, ready.services, part)
    return found


def rounds(bricks: Iterable[Brick]) -> list[list[Brick]]:
    """The bricks in few rounds, each of which holds each table once, and none that another of it hides."""
    made: list[list[Brick]] = []
    for brick in bricks:
        free = next((one for one in made if not any(_clash(brick, other) for other in one)), None)
        if free is None:
            made.append([brick])
        else:
            free.append(brick)
    return made


def _clash(one: Brick, other: Brick) -> bool:
    return one.table in (other.table, *other.hides.split()) or other.table in one.hides.split()


async def try_bricks(stack: Stack, services: Services, bricks: Sequence[Brick], *, within_s: float = WITHIN_S) -> Tried:
    """Plant bricks of one service, start it again, look, and mend them."""
    service = bricks[0].service
    await _run(stack, service, [sql for brick in bricks for sql in brick.plant])
    down = untold = 0
    try:
        try:
            await stack.restart(service)
            down = int(not await is_served(services, within_s=within_s))
        except ServiceError:
            down = 1
        if not down:
            untold = await _until_none(lambda: _untold(services, service, bricks), within_s)
    finally:
        await _run(stack, service, [sql for brick in bricks for sql in brick.mend])
    if down:
        # Only a start is left to it.
        await stack.restart(service)
    kept = await _until_none(lambda: _kept(services, service, bricks), within_s) if not untold else 0
    if down or untold or kept:
        print(
            f"bricks: {service}: {', '.join(brick.table for brick in bricks)}: {down=} {untold=} {kept=}",
            file=sys.stderr,
        )
    return Tried(len(bricks), down, untold, kept)


async def is_served(services: Services, *, within_s: float) -> bool:
    """Whether all five answer what they are asked, in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with suppress(ServiceError):
            for ask, request in _questions(services):
                await _answered(ask, request)
            return True
        await asyncio.sleep(POLL_S)
    return False


async def _answered(ask: Any, request: Any) -> None:
    """Returns for an answer, and for a refusal that says what is missing.

    Raises:
        ServiceError: nobody serves.
    """
    try:
        await call(ask, request, TIMEOUT_S)
    except ServiceError as error:
        if error.kind in BROKEN or error.reason == "SITE_NOT_APPLIED":
            raise


def _questions(services: Services) -> list[tuple[Any, Any]]:
    """One call to each service, about nobody in particular."""
    identities = [types_pb.Identity(namespace="user_id", value="somebody")]
    member = types_pb.Member(subject_id=NOBODY)
    click = feedback_pb.TrackedEvent(
        event_id=uuid.uuid4().hex, type="click", subject=types_pb.SubjectRef(identities=identities), item_ids=["i0"]
    )
    return [
        (
            services.identity.Resolve,
            identity_pb.ResolveRequest(queries=[identity_pb.ResolveQuery(identities=identities)]),
        ),
        (
            services.consent.Evaluate,
            consent_pb.EvaluateRequest(queries=[consent_pb.EvaluateQuery(members=[member], purposes=[PURPOSE])]),
        ),
        (services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest()),
        (
            services.decision.Decide,
            decision_pb.DecideRequest(
                request_id=uuid.uuid4().hex,
                identities=identities,
                placements=[decision_pb.PlacementRequest(placement_id=PLACEMENT)],
            ),
        ),
        (services.feedback.Track, feedback_pb.TrackRequest(events=[click])),
    ]


async def _told(services: Services, service: str) -> tuple[set[str], list[operations_pb.DeadLetter]]:
    """Alarms of the service, and what it put aside."""
    request = operations_pb.ListAlarmsRequest()
    answer = await call(services.operations(service).ListAlarms, request, TIMEOUT_S)
    return {alarm.name for alarm in answer.alarms}, list(await letters_of(services, service))


async def _untold(services: Services, service: str, bricks: Sequence[Brick]) -> int:
    """Bricks that the service says nothing of."""
    alarms, letters = await _told(services, service)
    return sum(
        bool(brick.alarm and brick.alarm not in alarms)
        or bool(brick.place and not any(letter.channel.startswith(brick.place) for letter in letters))
        for brick in bricks
    )


async def _kept(services: Services, service: str, bricks: Sequence[Brick]) -> int:
    """Bricks that are still told of: mended rows are read again, and a letter's retry says that they are."""
    for ask, question in _questions(services):
        # Some things are read when somebody asks.
        await _answered(ask, question)
    alarms, letters = await _told(services, service)
    if letters:
        request = operations_pb.RetryDeadLettersRequest(ids=[letter.id for letter in letters])
        await call(services.operations(service).RetryDeadLetters, request, TIMEOUT_S)
        alarms, letters = await _told(services, service)
    return sum(
        bool(brick.alarm in alarms)
        or bool(brick.place and any(letter.channel.startswith(brick.place) for letter in letters))
        for brick in bricks
    )


async def _until_none(count: Callable[[], Awaitable[int]], within_s: float) -> int:
    """What is counted, once it is nothing or the time is over."""
    until, left = time.monotonic() + within_s, 1
    while left and time.monotonic() < until:
        with suppress(ServiceError):
            left = await count()
        if left:
            await asyncio.sleep(POLL_S)
    return left


async def _run(stack: Stack, service: str, statements: Iterable[str]) -> None:
    connection = await asyncpg.connect(stack.database_url(service))
    try:
        for sql in statements:
            await connection.execute(sql)
    finally:
        await connection.close()


async def _bitten(ready: World, service: str, variant: str) -> Tried:
    """What a wrong service makes of the first of its bricks."""
    assert isinstance(ready.stack, VariantStack)
    await ready.stack.become(service, variant)
    brick = next(brick for brick in bricks_of(RUINS[0]) if brick.service == service)
    await _run(ready.stack, service, brick.plant)
    try:
        down = untold = 0
        try:
            await ready.stack.restart(service)
            untold = await _until_none(lambda: _untold(ready.services, service, [brick]), TEETH_WITHIN_S)
        except ServiceError:
            down = 1
    finally:
        await _run(ready.stack, service, brick.mend)
        await ready.stack.become(service)
    return Tried(1, down, untold)
