"""G11: erased means gone.

Subjects whose every personal field is a canary that occurs nowhere else go through all services: identities, context
facts, properties of behavior, decisions, outcomes, a trained model, dead letters, spans, logs; of some that stay an
export lies in the data directory. Half are erased. Then every byte below the data directory is looked through for
their canaries and keys, what features hold is compared with the behavior of those who stay alone, and every message
that ever travelled is delivered again.
"""

import asyncio
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import nats
import nats.errors
import numpy as np
from comity.common.v1 import events_pb2 as common_events_pb
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bench.prove.proof import Proof
from bench.prove.subjects import (
    DECIDE_TIMEOUT_S,
    OFFICER,
    TIMEOUT_S,
    Subject,
    agree,
    click_on,
    each,
    erasable,
    erase,
    know_keys,
    log_in,
    new_subject,
    resolve,
)
from bench.site import ITEMS_COUNT, MODEL, PLACEMENT
from bench.world import VariantStack
from cli.connections import Services
from cli.privacy.calls import export_records
from cli.privacy.exporting import export_folder, write_line
from cli.privacy.files import Found, scan_files, sizes
from cli.privacy.scan import Scanner
from cli.privacy.settling import folders_of, settled
from learning.errors import LearningError
from learning.log import replay_log
from learning.pipeline import Services as LearningServices
from learning.pipeline import TrainRequest, train
from services.chassis.bus import stream_of
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call

DECIDES_EACH = 3
EXPORTED_COUNT = 10
QUIET_S = 120.0
POLL_S = 0.1
TEETH_PEOPLE = 12
SEED = 11

# Every column of every table that can name somebody; what a ledger keeps on purpose is counted, too, and stays equal.
NAMING_SQL = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'public' AND data_type = 'text' ORDER BY table_name, column_name
"""
DEAD_LETTER_SQL = """
INSERT INTO dead_letters (source, consumer, channel, type, subject_id, reason, payload)
VALUES ('decision', 'proof', 'ev.v1.0.decision.DecisionMade', $1, $2, 'UNDECODABLE', $3)
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """What one trial found.

    Args:
        hits: canaries and keys of the erased that were found after the erasure.
        kept_hits: those of the others: the search finds what is there.
        miscounted: items whose counts are not those of the others' behavior alone, and others whose state changed.
        revived: rows that name the erased and came with the second delivery, and canaries found after it.
        unread: files that could not be looked into.
    """

    erased: int
    hits: int
    kept_hits: int
    miscounted: int
    revived: int
    redelivered: int
    files: int
    megabytes: int
    unread: int


async def prove(folder: Path, *, people_count: int) -> Proof:
    """The promise at this size, and two erasures that skip a store, which must be caught."""
    right = await try_erasure(folder / "right", people_count=people_count)
    teeth = {}
    for service, variant in (("feedback", "forgetful"), ("identity", "unforgetting")):
        wrong = await try_erasure(folder / variant, people_count=TEETH_PEOPLE, variants={service: variant})
        teeth[f"{service}_skipped"] = wrong.hits
    return Proof(
        trials=right.erased,
        failures=right.hits + right.miscounted + right.revived + (right.kept_hits == 0) + right.unread,
        teeth=teeth,
        facts={
            "hits": right.hits,
            "miscounted": right.miscounted,
            "revived": right.revived,
            "unread": right.unread,
            "kept_found": right.kept_hits,
            "redelivered": right.redelivered,
            "files": right.files,
            "megabytes": right.megabytes,
        },
    )


async def try_erasure(folder: Path, *, people_count: int, variants: dict[str, str] | None = None) -> Tried:
    """One trial on a stack of its own: half of the people are erased."""
    async with erasable(folder, variants=variants or {}) as (stack, services):
        people = [new_subject(number) for number in range(people_count)]
        await each(people, lambda one: _live(services, one))
        await _counted(services, people_count * DECIDES_EACH)
        await _learn(services)
        for one in people:
            await _die_unread(stack, one)
        await each(people, lambda one: know_keys(stack, one))
        await sample(stack)
        erased, kept = people[::2], people[1::2]
        states = await _states(stack, kept)
        await each(erased, lambda one: erase(services, one))
        # One after the other: an officer may not ask for many at once.
        for one in kept[:EXPORTED_COUNT]:
            await _export(services, stack, one)
        await _counted(services, len(kept) * DECIDES_EACH)
        miscounted = await _miscounted(services) + (states != await _states(stack, kept))
        found = await scan(stack, erased)
        found_kept = await scan(stack, kept)
        before = await _rows_naming(stack, erased)
        redelivered = await _deliver_again(stack)
        after = await scan(stack, erased)
        revived = await _rows_naming(stack, erased) - before + len(after.canaries - found.canaries)
        for hit in (*found.hits, *after.hits):
            print(f"found in {hit.path}: {len(hit.counts)} texts or keys", file=sys.stderr)
        return Tried(
            erased=len(erased),
            hits=len(found.canaries),
            kept_hits=len(found_kept.canaries),
            miscounted=miscounted,
            revived=revived,
            redelivered=redelivered,
            files=found.files_count,
            megabytes=found.bytes_count >> 20,
            unread=len(found.unread),
        )


async def _live(services: Services, one: Subject) -> None:
    """The person agrees, logs in, is decided for and clicks."""
    user, anonymous = one.identities
    await agree(services, one)
    # Before they log in they are somebody, too.
    for number, identities in enumerate(([anonymous], [user], [user, anonymous])):
        if number == 1:
            await log_in(services, one)
        await _decide_and_click(services, one, identities)
    await resolve(services, one)


async def _decide_and_click(services: Services, one: Subject, identities: Sequence[types_pb.Identity]) -> None:
    rng = np.random.default_rng(abs(hash((SEED, one.user))) % 2**32)
    request = decision_pb.DecideRequest(
        request_id=uuid.uuid4().hex,
        identities=identities,
        placements=[
            decision_pb.PlacementRequest(
                placement_id=PLACEMENT, candidate_ids=[f"i{k}" for k in rng.choice(ITEMS_COUNT, 20, replace=False)]
            )
        ],
        context={
            "hour": events_pb.ContextFact(number_value=12),
            "city": events_pb.ContextFact(string_value=one.city),
        },
        activation=events_pb.ACTIVATION_IMMEDIATE,
    )
    decision = (await call(services.decision.Decide, request, DECIDE_TIMEOUT_S)).decisions[0]
    click = feedback_pb.TrackRequest(events=[click_on(decision, one, identities)])
    answer = await call(services.feedback.Track, click, TIMEOUT_S)
    assert answer.results[0].status == feedback_pb.TRACK_STATUS_ACCEPTED, answer.results[0].problem


async def _learn(services: Services) -> None:
    """A model that has seen everybody's decisions. Too few people teach nothing: then the noise stays the model."""
    learning = LearningServices(services.feedback, services.features, services.release, services.sign)
    with suppress(ServiceError, LearningError):
        await train(learning, TrainRequest(name=MODEL, placement_id=PLACEMENT))


async def _die_unread(stack: VariantStack, one: Subject) -> None:
    """A dead letter about the person in feedback: readable, and one whose message nobody could open."""
    event = common_events_pb.Event(
        event_id=str(uuid.uuid4()), type="proof.Unknown", subject_id=one.members[0], plain=one.note.encode()
    )
    batch = common_events_pb.EventBatch(events=[event]).SerializeToString()
    connection = await asyncpg.connect(stack.database_url("feedback"))
    try:
        await connection.execute(DEAD_LETTER_SQL, "proof.Unknown", one.members[0], one.note.encode())
        await connection.execute(DEAD_LETTER_SQL, "", "", batch)
    finally:
        await connection.close()


async def sample(stack: VariantStack) -> None:
    """The planner's statistics, as Postgres takes them by itself after a while: they hold values of columns."""
    for service in stack.addresses:
        connection = await asyncpg.connect(stack.database_url(service))
        try:
            await connection.execute("ANALYZE")
        finally:
            await connection.close()


async def _export(services: Services, stack: VariantStack, one: Subject) -> None:
    """What the others may keep lies where it is looked for."""
    subject = types_pb.SubjectRef(subject_id=one.subject_id)
    with export_folder(stack.data_dir.path / "exports" / one.subject_id) as lines:
        async for record in export_records(services, subject, OFFICER):
            write_line(lines, record)


async def scan(stack: VariantStack, people: Sequence[Subject]) -> Found:
    """What is found of these people in any file of the stack."""
    scanner = Scanner([forms for one in people for forms in one.forms])
    folder = stack.data_dir.path
    async with settled(folder, lambda _: None):
        return await asyncio.to_thread(scan_files, scanner, sorted(sizes(folders_of(folder))))


async def _rows_naming(stack: VariantStack, people: Sequence[Subject]) -> int:
    """Rows of any table of any service with a text that is one of their pseudonyms."""
    members = [member for one in people for member in one.members]
    total = 0
    for service in stack.addresses:
        connection = await asyncpg.connect(stack.database_url(service))
        try:
            for table, column in await connection.fetch(NAMING_SQL):
                counted = f'SELECT count(*) FROM "{table}" WHERE "{column}" = ANY($1::text[])'
                total += await connection.fetchval(counted, members)
        finally:
            await connection.close()
    return total


async def _states(stack: VariantStack, people: Sequence[Subject]) -> dict[str, bytes]:
    """What features hold of each member."""
    members = [member for one in people for member in one.members]
    connection = await asyncpg.connect(stack.database_url("features"))
    try:
        rows = await connection.fetch("SELECT member_id, state FROM member_states WHERE member_id = ANY($1)", members)
        return {row["member_id"]: row["state"] for row in rows}
    finally:
        await connection.close()


async def _behavior(services: Services) -> dict[str, int]:
    """Clicks of each item, as the log has them now."""
    clicks: dict[str, int] = {}
    request = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_BEHAVIOR])
    async for page in replay_log(services.feedback, request):
        for event in page.events:
            if event.behavior.type == "click":
                for item_id in event.behavior.item_ids:
                    clicks[item_id] = clicks.get(item_id, 0) + 1
    return clicks


async def _item_counts(services: Services) -> dict[str, tuple[float, float]]:
    """(clicks, clicks with decay) of each item that has any, as decision reads them."""
    described = await call(services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest(), TIMEOUT_S)
    feature_set = described.feature_set
    plain, decayed = (
        next(column.item.offset for column in feature_set.columns if column.name == name)
        for name in ("clicks_plain", "clicks_decayed")
    )
    counts: dict[str, tuple[float, float]] = {}
    request = features_pb.GetItemColumnsRequest(feature_set_version=feature_set.version)
    async for chunk in services.features.GetItemColumns(request, timeout=TIMEOUT_S):
        rows = np.nan_to_num(np.frombuffer(chunk.rows, "<f4").reshape(len(chunk.item_ids), feature_set.item_width))
        for item_id, row in zip(chunk.item_ids, rows, strict=True):
            if row[plain] or row[decayed]:
                counts[item_id] = float(row[plain]), float(row[decayed])
    return counts


async def _counted(services: Services, clicks_count: int) -> None:
    """Returns once features have as many clicks as there should be, or it is clear that they will not."""
    seen: list[float] = []
    async with asyncio.timeout(QUIET_S):
        while len(seen) < 50 or len(set(seen[-50:])) > 1:
            seen.append(sum(plain for plain, _ in (await _item_counts(services)).values()))
            if seen[-1] == clicks_count:
                return
            await asyncio.sleep(POLL_S)


async def _miscounted(services: Services) -> int:
    """Items whose counts differ from those of a world in which only the logged behavior ever happened.

    Everything happened within the hour, so what decays by half in a day is between the plain count and 97 % of it.
    """
    clicks, counts = await _behavior(services), await _item_counts(services)
    wrong = 0
    for item_id in clicks.keys() | counts.keys():
        expected = clicks.get(item_id, 0)
        plain, decayed = counts.get(item_id, (0.0, 0.0))
        wrong += plain != expected or not expected * 0.97 <= decayed + 1e-4 or decayed > expected + 1e-3
    return wrong


async def _deliver_again(stack: VariantStack) -> int:
    """Publish every message of every stream once more, as new ones, and wait until all are consumed; how many."""
    client = await nats.connect(stack.nats_url)
    jetstream, count = client.jetstream(), 0
    try:
        for service in stack.addresses:
            messages = await _messages(jetstream, stream_of(service))
            for subject, data, headers in messages:
                fresh = {**headers, "Nats-Msg-Id": uuid.uuid4().hex}
                await jetstream.publish(subject, data, headers=fresh, timeout=TIMEOUT_S)
            count += len(messages)
        async with asyncio.timeout(QUIET_S):
            while await _pending(jetstream, stack):  # noqa: ASYNC110  # NATS tells nobody when a consumer is done
                await asyncio.sleep(POLL_S)
    finally:
        await client.close()
    return count


async def _messages(jetstream: Any, stream: str) -> list[tuple[str, bytes, dict[str, str]]]:
    """All messages of a stream, in order."""
    try:
        held = (await jetstream.stream_info(stream)).state.messages
    except nats.errors.Error:
        # A service that tells nobody anything has none.
        return []
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
    subscription = await jetstream.pull_subscribe("", stream=stream, config=config)
    found: list[tuple[str, bytes, dict[str, str]]] = []
    while len(found) < held:
        for message in await subscription.fetch(min(500, held - len(found)), timeout=TIMEOUT_S):
            found.append((message.subject, message.data, dict(message.headers or {})))
    await subscription.unsubscribe()
    return found


async def _pending(jetstream: Any, stack: VariantStack) -> int:
    """Messages that a service has not taken in."""
    total = 0
    for service in stack.addresses:
        try:
            consumers = await jetstream.consumers_info(stream_of(service))
        except nats.errors.Error:
            continue
        total += sum(one.num_pending + one.num_ack_pending for one in consumers if one.config.durable_name)
    return total
