"""Makes and takes back links: the links, what follows from them and the facts that say so, in one transaction.

Two links that concern one person must see each other. A link locks the members it names and the subjects they belong
to, in one order, before it reads; whatever changes a subject holds the lock of its canonical member. Taking a link back
can concern anyone who hangs together with it, so it waits until no link is being made.

The locks are advisory, because a row lock would give the transaction its id before it waits: the log is read in order
of those ids, and of two changes to one person the later one must have the higher.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import count

import asyncpg

from services.chassis.erasure import erased_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in, command_applied, find_command, subject_erased
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.tracing import traceparent
from services.identity import wire
from services.identity.domain.facts import Fact, named_in
from services.identity.domain.identities import NAMESPACES
from services.identity.domain.linking import (
    LINKS_FOLDED_MAX,
    LINKS_MAX,
    Change,
    LinkCommand,
    Linked,
    UnlinkCommand,
    link,
    unlink,
)
from services.identity.domain.permission import Side, sides
from services.identity.domain.subjects import MEMBERS_MAX, Link, Named, People
from services.identity.store.subjects import read_people

# A person who is linked from many sides at once; each try waits for the one before it.
TRIES_MAX = 8
# A transaction whose COMMIT was not answered may still be running: the second try waits for it at its locks.
OUTCOME_TRIES_MAX = 2

LOCK_SHARED_SQL = "SELECT pg_advisory_xact_lock_shared(hashtextextended('identity.links', 0))"
LOCK_ALL_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('identity.links', 0))"
LOCK_MEMBERS_SQL = (
    "SELECT pg_advisory_xact_lock(hashtextextended('identity.member.' || m, 0)) FROM unnest($1::text[]) AS m"
)
CANONICAL_SQL = "SELECT DISTINCT subject_id FROM subject_members WHERE member_id = ANY($1::text[])"

STANDING_SQL = "SELECT link_id FROM links WHERE statement = $1"
LINKS_COUNT_SQL = """
SELECT namespace FROM link_members WHERE member_id = ANY($1::text[])
GROUP BY member_id, namespace HAVING count(*) >= $2 LIMIT 1
"""
INSERT_LINK_SQL = """
INSERT INTO links (link_id, statement, linked_at) VALUES ($1, $2, clock_timestamp()) RETURNING link_order, linked_at
"""
INSERT_LINK_MEMBERS_SQL = """
INSERT INTO link_members (link_id, member_id, namespace) SELECT $1, m, n FROM unnest($2::text[], $3::text[]) AS a(m, n)
"""
PUT_MEMBERS_SQL = """
INSERT INTO subject_members AS s (member_id, subject_id, namespace, born, merged_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[])
ON CONFLICT (member_id) DO UPDATE
SET subject_id = EXCLUDED.subject_id, born = EXCLUDED.born, merged_at = EXCLUDED.merged_at
WHERE (s.subject_id, s.born, s.merged_at)
    IS DISTINCT FROM (EXCLUDED.subject_id, EXCLUDED.born, EXCLUDED.merged_at)
"""
DELETE_MEMBERS_SQL = "DELETE FROM subject_members WHERE member_id = ANY($1::text[])"
DELETE_LINK_SQL = "DELETE FROM links WHERE link_id = $1"

# Everything that hangs together with a link through the members that links name, one row a member of a link.
TANGLE_SQL = """
WITH RECURSIVE reached (link_id) AS (
    SELECT link_id FROM links WHERE link_id = ANY($1::text[])
    UNION
    SELECT other.link_id FROM reached
    JOIN link_members mine USING (link_id)
    JOIN link_members other ON other.member_id = mine.member_id
)
SELECT l.link_id, l.link_order, l.linked_at, m.namespace, m.member_id
FROM (SELECT link_id FROM reached LIMIT $2) r JOIN links l USING (link_id) JOIN link_members m USING (link_id)
"""

LINKS_BY_ID_SQL = """
SELECT l.link_id, l.link_order, l.linked_at, m.namespace, m.member_id
FROM links l JOIN link_members m USING (link_id) WHERE l.link_id = ANY($1::text[])
"""

NOTE_STREAM_SQL = """
INSERT INTO link_streams (member_id, link_id) SELECT m, $1 FROM unnest($2::text[]) AS m ORDER BY m
ON CONFLICT DO NOTHING
"""
NAMES_ERASED_SQL = """
SELECT EXISTS (SELECT FROM link_streams s JOIN erased_members e USING (member_id) WHERE s.link_id = $1)
"""
COMMAND_STREAM_SQL = "SELECT stream_id FROM commands WHERE request_id = $1"
WAS_MERGED_SQL = "SELECT EXISTS (SELECT FROM events WHERE stream_id = $1 AND version <= $2 AND type = $3)"
FIRST_PAYLOAD_SQL = "SELECT payload FROM events WHERE stream_id = $1 AND version = 1"
VERSION_SQL = "SELECT version FROM events WHERE stream_id = $1 ORDER BY version DESC LIMIT 1"
NOW_SQL = "SELECT clock_timestamp()"


class PostgresLinks:
    """handlers.LinkStore."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def made(self, command: LinkCommand) -> Linked | None:
        """See handlers.LinkStore."""
        async with acquire(self._pool) as connection:
            return await _made(connection, command)

    async def people(self, member_ids: Sequence[str]) -> People:
        """See handlers.LinkStore."""
        async with acquire(self._pool) as connection:
            return await read_people(connection, member_ids)

    async def link(self, command: LinkCommand, asked: frozenset[Side]) -> Linked:
        """See handlers.LinkStore."""
        member_ids = [one.member_id for one in command.named]
        locked: set[str] = set(member_ids)
        for attempt in count(1):
            try:
                async with transaction(self._pool, verify=command_applied(command.request_id)) as connection:
                    locked |= await _lock_people(connection, member_ids, locked)
                    return await self._link(connection, command, asked)
            except _PeopleMovedError as moved:
                locked |= moved.subject_ids
                if attempt >= TRIES_MAX:
                    raise _contended() from moved
            except ServiceError as error:
                if error.reason != "OUTCOME_UNKNOWN" or attempt >= OUTCOME_TRIES_MAX:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _link(self, connection: Connection, command: LinkCommand, asked: frozenset[Side]) -> Linked:
        made = await _made(connection, command)
        if made is not None:
            return made
        await _require_room(connection, command)
        member_ids = [one.member_id for one in command.named]
        if await erased_in(connection, member_ids):
            # Erased since the handler looked: a new try names the next generation.
            raise subject_erased()
        people = await read_people(connection, member_ids)
        if sides(command.named, people) != asked:
            raise _moved()
        row = await connection.fetchrow(INSERT_LINK_SQL, command.link_id, command.statement)
        assert row is not None, "RETURNING gives the row inserted"
        named = tuple(Named(one.namespace, one.member_id) for one in command.named)
        change = link(Link(command.link_id, row["link_order"], row["linked_at"], named), command.named, people)
        if change.is_full:
            raise _full()
        await append_in(connection, [_append(command.link_id, 0, change, row["linked_at"], command)])
        await note_streams(connection, command.link_id, _named_in(change.facts))
        await connection.execute(
            INSERT_LINK_MEMBERS_SQL,
            command.link_id,
            [one.member_id for one in named],
            [one.namespace.name for one in named],
        )
        await put_people(connection, change.people)
        return Linked(command.link_id, change.merged)

    async def unlink(self, command: UnlinkCommand) -> Sequence[str]:
        """See handlers.LinkStore."""
        for attempt in count(1):
            try:
                async with transaction(self._pool, verify=command_applied(command.request_id)) as connection:
                    await connection.execute(LOCK_ALL_SQL)
                    return await self._unlink(connection, command)
            except ServiceError as error:
                if error.reason != "OUTCOME_UNKNOWN" or attempt >= OUTCOME_TRIES_MAX:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _unlink(self, connection: Connection, command: UnlinkCommand) -> Sequence[str]:
        if await find_command(connection, command.request_id, command.digest) is not None:
            payload = await connection.fetchval(FIRST_PAYLOAD_SQL, stream_id_of(command.link_id))
            return wire.linked_member_ids(payload)
        links = await _read_tangle(connection, command.link_id)
        change = unlink(command.link_id, links)
        version = await connection.fetchval(VERSION_SQL, stream_id_of(command.link_id))
        now = await connection.fetchval(NOW_SQL)
        await append_in(connection, [_append(command.link_id, version, change, now, command)])
        await note_streams(connection, command.link_id, _named_in(change.facts))
        await connection.execute(DELETE_LINK_SQL, command.link_id)
        concerned = {one.member_id for one_link in links for one in one_link.named}
        await connection.execute(DELETE_MEMBERS_SQL, sorted(concerned - set(change.people)))
        await put_people(connection, change.people)
        taken_back = next(one for one in links if one.link_id == command.link_id)
        return [one.member_id for one in sorted(taken_back.named, key=lambda one: one.rank)]


class _PeopleMovedError(Exception):
    """The members belong to other subjects than those that were locked."""

    def __init__(self, subject_ids: set[str]) -> None:
        super().__init__("the members belong to other subjects by now")
        self.subject_ids = subject_ids


async def _made(connection: Connection, command: LinkCommand) -> Linked | None:
    """What the command did when it was applied, or the link that says the same."""
    done = await find_command(connection, command.request_id, command.digest)
    if done is not None:
        stream_id = await connection.fetchval(COMMAND_STREAM_SQL, command.request_id)
        if await connection.fetchval(NAMES_ERASED_SQL, _link_id(stream_id)):
            raise subject_erased()
        merged = await connection.fetchval(WAS_MERGED_SQL, stream_id, done.version, wire.SUBJECTS_MERGED)
        return Linked(_link_id(stream_id), merged)
    standing = await connection.fetchval(STANDING_SQL, command.statement)
    return None if standing is None else Linked(standing, merged=False)


async def _lock_people(connection: Connection, member_ids: list[str], known: set[str]) -> set[str]:
    """Lock members and their subjects, all in one sorted statement; the subjects' canonical members.

    Raises:
        _PeopleMovedError: a subject is not among those locked; locking it now would be out of order and could deadlock.
    """
    before = {row["subject_id"] for row in await connection.fetch(CANONICAL_SQL, member_ids)}
    await connection.execute(LOCK_SHARED_SQL)
    await connection.execute(LOCK_MEMBERS_SQL, sorted(known | before))
    after = {row["subject_id"] for row in await connection.fetch(CANONICAL_SQL, member_ids)}
    if not after <= known | before:
        raise _PeopleMovedError(after)
    return after


async def _require_room(connection: Connection, command: LinkCommand) -> None:
    namespace = await connection.fetchval(LINKS_COUNT_SQL, [one.member_id for one in command.named], LINKS_MAX)
    if namespace is not None:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "IDENTITY_SHARED_TOO_OFTEN",
            f"the {namespace} is named by {LINKS_MAX} links: it tells nothing any more, leave it out of the link",
        )


async def _read_tangle(connection: Connection, link_id: str) -> list[Link]:
    found = await read_tangle(connection, [link_id])
    if all(one.link_id != link_id for one in found):
        raise ServiceError(
            Kind.NOT_FOUND,
            "LINK_UNKNOWN",
            "no such link stands: it was never made, or has been taken back; DescribeSubject lists a person's links",
        )
    return found


async def read_tangle(connection: Connection, link_ids: Sequence[str]) -> list[Link]:
    """The links that stand of these, and all that hang together with them.

    Raises:
        ServiceError: EXHAUSTED (LINKS_TANGLED).
    """
    found = _links(await connection.fetch(TANGLE_SQL, list(link_ids), LINKS_FOLDED_MAX + 1))
    if len(found) > LINKS_FOLDED_MAX:
        raise ServiceError(
            Kind.EXHAUSTED,
            "LINKS_TANGLED",
            f"the link hangs together with more than {LINKS_FOLDED_MAX} others through shared identities, too many to "
            "fold again: it stands; leave devices that many people share out of links",
        )
    return found


async def read_links(connection: Connection, link_ids: Sequence[str]) -> list[Link]:
    """The links that stand of these."""
    return _links(await connection.fetch(LINKS_BY_ID_SQL, list(link_ids)))


def _links(rows: Sequence[asyncpg.Record]) -> list[Link]:
    """Links from rows of (link_id, link_order, linked_at, namespace, member_id), one a member."""
    grouped: dict[str, list[asyncpg.Record]] = {}
    for row in rows:
        grouped.setdefault(row["link_id"], []).append(row)
    return [
        Link(
            name,
            members[0]["link_order"],
            members[0]["linked_at"],
            tuple(Named(NAMESPACES[one["namespace"]], one["member_id"]) for one in members),
        )
        for name, members in grouped.items()
    ]


async def note_streams(connection: Connection, link_id: str, member_ids: Collection[str]) -> None:
    """Keep whom the link or its stream names, for an erasure to find it by."""
    await connection.execute(NOTE_STREAM_SQL, link_id, sorted(member_ids))


async def put_people(connection: Connection, people: People) -> None:
    """Make the table say what the fold says."""
    members = {one.member_id: (subject, one) for subject in people.values() for one in subject.members}
    rows = [
        (one.member_id, subject.subject_id, one.namespace.name, one.born, one.merged_at)
        for _, (subject, one) in sorted(members.items())
    ]
    await connection.execute(
        PUT_MEMBERS_SQL, *(list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 5
    )


def _append(link_id: str, version: int, change: Change, at: datetime, command: LinkCommand | UnlinkCommand) -> Append:
    return Append(
        stream_id=stream_id_of(link_id),
        expected_version=version,
        events=tuple(event_of(fact, at) for fact in change.facts),
        request_id=command.request_id,
        request_digest=command.digest,
    )


def event_of(fact: Fact, at: datetime) -> NewEvent:
    """A fact as an event."""
    event_type, payload = wire.encode(fact)
    return NewEvent(uuid7(at), event_type, payload, at, fact.subject_id, traceparent())


def stream_id_of(link_id: str) -> str:
    """The stream of a link's facts."""
    return f"link-{link_id}"


def _named_in(facts: Sequence[Fact]) -> set[str]:
    return {one for fact in facts for one in named_in(fact)}


def _link_id(stream_id: str) -> str:
    return stream_id.removeprefix("link-")


def _full() -> ServiceError:
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        "SUBJECT_FULL",
        f"a person has at most {MEMBERS_MAX} identities: leave session ids out of links, or take old links back",
    )


def _moved() -> ServiceError:
    return ServiceError(
        Kind.CONFLICT,
        "PEOPLE_MOVED",
        "somebody else was linked to the person while consent was asked: send it again",
        retry_after_s=0.1,
    )


def _contended() -> ServiceError:
    return ServiceError(
        Kind.CONFLICT,
        "LINKS_RACING",
        "the same person is being linked from many sides: send it again",
        retry_after_s=0.1,
    )
