"""What identity holds about people: links, who is who, data keys; described, handed out and erased.

An erasure leaves those who stay as though the erased had never been: links that name both lose the erased, and are
stated again. What stays of the erased is pseudonyms: the suppress list, the tombstones of keys and two kinds of facts.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

import asyncpg

from services.chassis.clock import Clock
from services.chassis.erasure import ERASING_SQL, POSTGRES, Erasure, Step, count_in, delete_from_log
from services.chassis.events import Append
from services.chassis.eventstore import append_in
from services.chassis.holdings import HeldRecord, Holding, letter_records
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.identity import wire
from services.identity.domain.facts import DataKeyDestroyed, Fact, IdentityLinked, SubjectErased
from services.identity.domain.identities import Pseudonym
from services.identity.domain.linking import without
from services.identity.domain.subjects import Link, fold
from services.identity.store.links import (
    DELETE_MEMBERS_SQL,
    LOCK_ALL_SQL,
    event_of,
    note_streams,
    put_people,
    read_links,
    read_tangle,
    stream_id_of,
)
from services.identity.store.subjects import LINKS_SQL, read_people

# Rewriting a table takes it exclusively: past this it is only vacuumed, and what lies in freed space until it is
# written over is a key that is wrapped.
REWRITTEN_BYTES_MAX = 256 * 2**20
VACUUM_TIMEOUT_S = 30.0

STREAMS_SQL = "SELECT DISTINCT link_id FROM link_streams WHERE member_id = ANY($1::text[]) ORDER BY link_id"
STATED_SQL = "SELECT payload FROM events WHERE stream_id = $1 AND version = 1 AND type = $2"
DELETE_STREAMS_SQL = "DELETE FROM events WHERE stream_id = ANY($1::text[]) RETURNING 1"
DELETE_COMMANDS_SQL = "DELETE FROM commands WHERE stream_id = ANY($1::text[]) RETURNING 1"
DELETE_NOTES_SQL = "DELETE FROM link_streams WHERE link_id = ANY($1::text[])"
DELETE_NAMES_SQL = "DELETE FROM link_members WHERE member_id = ANY($1::text[]) RETURNING 1"
DELETE_LINKS_SQL = "DELETE FROM links WHERE link_id = ANY($1::text[]) RETURNING 1"
COUNT_MEMBERS_SQL = "SELECT 1 FROM subject_members WHERE member_id = ANY($1::text[])"
# A statement is a hash over keyed hashes, the erased one's among them. No statement is the hash of a link's id.
FORGET_STATEMENT_SQL = (
    "UPDATE links SET statement = sha256(convert_to(link_id, 'UTF8')) WHERE link_id = ANY($1::text[])"
)

DESTROY_SQL = """
UPDATE data_keys SET wrapped = NULL, destroyed_at = clock_timestamp()
WHERE member_id = ANY($1::text[]) AND wrapped IS NOT NULL RETURNING member_id, key_id
"""
KEYS_BYTES_SQL = "SELECT pg_total_relation_size('data_keys')"
NO_TIMEOUT_SQL = "SET statement_timeout = 0"
RESET_TIMEOUT_SQL = "RESET statement_timeout"
ERASED_EXISTS_SQL = "SELECT EXISTS (SELECT FROM events WHERE stream_id = $1)"

MEMBERS_SQL = """
SELECT member_id, namespace, merged_at FROM subject_members WHERE member_id = ANY($1::text[]) ORDER BY member_id
"""
KEY_NOTES_SQL = """
SELECT member_id, minted_at, destroyed_at FROM data_keys WHERE member_id = ANY($1::text[]) ORDER BY member_id
"""
EVENT_NOTES_SQL = """
SELECT subject_id, type, occurred_at FROM events WHERE subject_id = ANY($1::text[]) AND subject_id <> ''
ORDER BY epoch, xid, position
"""

_ALL = ("consent", "features", "decision", "feedback")


class IdentityHoldings:
    """chassis.holdings.Holdings of identity."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    def describe(self) -> Sequence[Holding]:
        """See chassis.holdings.Holdings."""
        linking = ("identity_linking",)
        return [
            Holding(
                POSTGRES,
                "links",
                "that identities, kept as keyed hashes, are one person's",
                "deleted; a link that names others too loses the person",
                purposes=linking,
            ),
            Holding(
                POSTGRES,
                "subject_members",
                "which pseudonyms are one person",
                "deleted",
                purposes=linking,
                read_by=_ALL,
            ),
            Holding(
                POSTGRES,
                "data_keys",
                "the key that the person's data is sealed with, wrapped",
                "destroyed; a tombstone stays",
                read_by=("features", "decision", "feedback"),
            ),
            Holding(POSTGRES, "events", "that the person was linked, and has a key", "deleted"),
            Holding(POSTGRES, "commands", "ids of the requests that linked the person", "deleted"),
            Holding(POSTGRES, "dead_letters", "that a key of the person could not be opened", "deleted"),
            Holding(POSTGRES, "erased_members", "that a pseudonym was erased", "kept: it keeps the erasure"),
        ]

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        """See chassis.holdings.Holdings. Namespaces and times: neither hashes nor keys are the person's to read."""
        ids = list(member_ids)
        async with acquire(self._pool) as connection:
            links = await connection.fetch(LINKS_SQL, ids)
            members = await connection.fetch(MEMBERS_SQL, ids)
            keys = await connection.fetch(KEY_NOTES_SQL, ids)
            events = await connection.fetch(EVENT_NOTES_SQL, ids)
        for row in links:
            content = {"link_id": row["link_id"], "namespaces": list(row["namespaces"])}
            yield HeldRecord(POSTGRES, "links", "link", "", row["linked_at"], content)
        for row in members:
            content = {"namespace": row["namespace"]}
            yield HeldRecord(POSTGRES, "subject_members", "member", row["member_id"], row["merged_at"], content)
        for row in keys:
            content = {"destroyed": row["destroyed_at"] is not None}
            yield HeldRecord(POSTGRES, "data_keys", "data key", row["member_id"], row["minted_at"], content)
        for row in events:
            content = {"type": row["type"]}
            yield HeldRecord(POSTGRES, "events", "event", row["subject_id"], row["occurred_at"], content)
        async for letter in letter_records(self._pool, ids):
            yield letter

    async def erase(self, step: Step, erasure: Erasure) -> None:
        """See chassis.holdings.Holdings."""
        if step is Step.DESTROY_KEYS:
            await self._destroy_keys(erasure)
        if step is Step.DELETE:
            await self._delete_links(erasure)
            await delete_from_log(self._pool, erasure)
            await self._record_erased(erasure)

    async def _destroy_keys(self, erasure: Erasure) -> None:
        """The keys become tombstones, and their bytes leave the table's file."""
        now = self._clock.now()
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(DESTROY_SQL, list(erasure.member_ids))
            for row in rows:
                fact = DataKeyDestroyed(row["member_id"], row["key_id"])
                await append_in(connection, [_about_nobody(f"erased-key-{row['member_id']}", fact, now)])
            counts = {(POSTGRES, "data_keys"): len(rows)}
            await count_in(connection, erasure.erasure_id, Step.DESTROY_KEYS, counts)
        # Also when the step is taken again and finds no key left: the first time may have stopped before this.
        await self._rewrite_keys()

    async def _rewrite_keys(self) -> None:
        """A deleted row's bytes stay in the file until they are written over: write the file anew.

        A role that does not own the table is only warned by Postgres, and nothing happens.
        """
        async with acquire(self._pool) as connection:
            small = await connection.fetchval(KEYS_BYTES_SQL) <= REWRITTEN_BYTES_MAX
            await connection.execute(NO_TIMEOUT_SQL)
            try:
                vacuum = "VACUUM (FULL) data_keys" if small else "VACUUM data_keys"
                await connection.execute(vacuum, timeout=VACUUM_TIMEOUT_S)
            finally:
                await connection.execute(RESET_TIMEOUT_SQL)

    async def _delete_links(self, erasure: Erasure) -> None:
        """The links of the erased, and of what they say about others only that."""
        erased = frozenset(erasure.member_ids)
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_ALL_SQL)
            link_ids = [row["link_id"] for row in await connection.fetch(STREAMS_SQL, sorted(erased))]
            # Whole persons go as though they had never been, and nobody else is folded again, however many hang
            # together with them; of a person who was linked while the erasure began, somebody is left, who is.
            is_whole = not await read_people(connection, sorted(erased))
            links = await (read_links if is_whole else read_tangle)(connection, link_ids)
            left = without(links, erased)
            people = {} if is_whole else fold(left)
            kept = [link for link in left if link.link_id in set(link_ids)]
            stated = {link.link_id: await _stated(connection, link.link_id) for link in kept}
            counts = await _delete(connection, link_ids, links, left, erased)
            await connection.execute(DELETE_MEMBERS_SQL, sorted(erased.union(people)))
            await put_people(connection, people)
            for link in kept:
                await _state_again(connection, link, stated[link.link_id])
            await count_in(connection, erasure.erasure_id, Step.DELETE, counts)

    async def _record_erased(self, erasure: Erasure) -> None:
        stream_id = f"erasure-{erasure.erasure_id}"
        fact = SubjectErased(erasure.erasure_id, erasure.member_ids)
        async with transaction(self._pool) as connection:
            if not await connection.fetchval(ERASED_EXISTS_SQL, stream_id):
                await append_in(connection, [_about_nobody(stream_id, fact, self._clock.now())])


async def _delete(
    connection: Connection,
    link_ids: Sequence[str],
    links: Sequence[Link],
    left: Sequence[Link],
    erased: frozenset[str],
) -> Mapping[tuple[str, str], int]:
    """Delete links, their members and streams; links that are left forget what they stated."""
    streams = [stream_id_of(link_id) for link_id in link_ids]
    names = {link.link_id: len(link.named) for link in left}
    gone = sorted(link.link_id for link in links if link.link_id not in names)
    less = sorted(link.link_id for link in links if 0 < names.get(link.link_id, 0) < len(link.named))
    await connection.execute(ERASING_SQL)
    counts = {
        (POSTGRES, "events"): await _count(connection, DELETE_STREAMS_SQL, streams),
        (POSTGRES, "commands"): await _count(connection, DELETE_COMMANDS_SQL, streams),
        (POSTGRES, "link_members"): await _count(connection, DELETE_NAMES_SQL, sorted(erased)),
        (POSTGRES, "links"): await _count(connection, DELETE_LINKS_SQL, gone),
        (POSTGRES, "subject_members"): await _count(connection, COUNT_MEMBERS_SQL, sorted(erased)),
    }
    await connection.execute(FORGET_STATEMENT_SQL, less)
    await connection.execute(DELETE_NOTES_SQL, link_ids)
    return counts


async def _count(connection: Connection, statement: str, ids: Sequence[str]) -> int:
    rows: list[asyncpg.Record] = await connection.fetch(statement, list(ids))
    return len(rows)


async def _stated(connection: Connection, link_id: str) -> tuple[Pseudonym, ...]:
    """What the link's fact names; nothing where all whom it names still are another erasure's, see _state_again."""
    payload = await connection.fetchval(STATED_SQL, stream_id_of(link_id), wire.IDENTITY_LINKED)
    return () if payload is None else wire.linked_of(payload).named


async def _state_again(connection: Connection, link: Link, stated: Sequence[Pseudonym]) -> None:
    """The fact of a link that stands, without the erased, those of other erasures among them.

    Somebody on the suppress list whose rows are still here is another erasure's to delete, which finds the link by its
    notes. The log would refuse a fact about them, and of two who shared a device each erasure would wait for the other.
    """
    await note_streams(connection, link.link_id, [*(one.member_id for one in link.named), *link.gave_way])
    people = await read_people(connection, [one.member_id for one in link.named])
    named = tuple(one for one in stated if one.member_id in people)
    if named:
        anchor = min(named, key=lambda one: one.rank)
        # Of an erasure of theirs, too, whoever gave way is not named again.
        others = await read_people(connection, sorted(link.gave_way))
        gave_way = tuple(sorted(link.gave_way.intersection(others)))
        fact = IdentityLinked(link.link_id, people[anchor.member_id].subject_id, named, gave_way)
        await append_in(connection, [Append(stream_id_of(link.link_id), 0, (event_of(fact, link.linked_at),))])


def _about_nobody(stream_id: str, fact: Fact, at: datetime) -> Append:
    return Append(stream_id, 0, (event_of(fact, at),))
