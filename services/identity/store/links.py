"""Makes and takes back links: the links, what follows from them and the facts that say so, in one transaction.

Two links that concern one person must see each other. A link locks the members it names and the subjects they belong
to, in one order, before it reads; whatever changes a subject holds the lock of its canonical member. Taking a link back
can concern anyone who hangs together with it, so it waits until no link is being made.

The locks are advisory, because a row lock would give the transaction its id before it waits: the log is read in order
of those ids, and of two changes to one person the later one must have the higher.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import TypeVar

import asyncpg

from services.chassis.erasure import erased_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import (
    append_in,
    command_applied,
    find_command,
    own_request_id,
    scoped_request_id,
    subject_erased,
)
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, Verify, acquire, transaction
from services.chassis.tracing import traceparent
from services.identity import wire
from services.identity.domain.facts import Fact, named_in
from services.identity.domain.identities import NAMESPACES
from services.identity.domain.linking import (
    LINKS_FOLDED_MAX,
    LINKS_MAX,
    LINKS_STRONG_MAX,
    Change,
    LinkCommand,
    Linked,
    UnlinkCommand,
    link,
    unlink,
)
from services.identity.domain.permission import Side, sides
from services.identity.domain.subjects import Link, Named, People
from services.identity.store.subjects import read_people

# A person who is linked from many sides at once; each try waits for the one before it.
TRIES_MAX = 8
# A transaction whose COMMIT was not answered may still be running: the second try waits for it at its locks.
OUTCOME_TRIES_MAX = 2
# The same try again: it may have been applied, or another person's command with this request id came in beside it.
AGAIN = frozenset({"OUTCOME_UNKNOWN", "COMMAND_RACING", "REQUEST_ID_REUSED"})

LOCK_SHARED_SQL = "SELECT pg_advisory_xact_lock_shared(hashtextextended('identity.links', 0))"
LOCK_ALL_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('identity.links', 0))"
LOCK_MEMBERS_SQL = (
    "SELECT pg_advisory_xact_lock(hashtextextended('identity.member.' || m, 0)) FROM unnest($1::text[]) AS m"
)
CANONICAL_SQL = "SELECT DISTINCT subject_id FROM subject_members WHERE member_id = ANY($1::text[])"

STANDING_SQL = "SELECT link_id FROM links WHERE statement = $1"
LINKS_COUNT_SQL = """
SELECT namespace, count(*) AS count FROM link_members WHERE member_id = ANY($1::text[]) AND NOT gave_way
GROUP BY member_id, namespace
HAVING count(*) >= CASE WHEN namespace = ANY($2::text[]) THEN $3::int ELSE $4::int END LIMIT 1
"""
INSERT_LINK_SQL = """
INSERT INTO links (link_id, statement, linked_at) VALUES ($1, $2, clock_timestamp()) RETURNING link_order, linked_at
"""
INSERT_LINK_MEMBERS_SQL = """
INSERT INTO link_members (link_id, member_id, namespace, gave_way)
SELECT $1, m, n, g FROM unnest($2::text[], $3::text[], $4::boolean[]) AS a(m, n, g)
"""
# A link that named somebody who has left does not say who they are any more: the same may be stated again. No statement
# is the hash of a link's id.
FORGET_STATEMENTS_SQL = """
UPDATE links SET statement = sha256(convert_to(link_id, 'UTF8'))
WHERE link_id IN (SELECT link_id FROM link_members WHERE member_id = ANY($1::text[]) AND NOT gave_way)
"""
GAVE_WAY_SQL = "SELECT member_id FROM link_members WHERE link_id = $1 AND gave_way ORDER BY member_id"
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
SELECT l.link_id, l.link_order, l.linked_at, m.namespace, m.member_id, m.gave_way
FROM (SELECT link_id FROM reached LIMIT $2) r JOIN links l USING (link_id) JOIN link_members m USING (link_id)
"""

LINKS_BY_ID_SQL = """
SELECT l.link_id, l.link_order, l.linked_at, m.namespace, m.member_id, m.gave_way
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
            return await _made(connection, await _with_own_id(connection, command, command.named[0].member_id))

    async def people(self, member_ids: Sequence[str]) -> People:
        """See handlers.LinkStore."""
        async with acquire(self._pool) as connection:
            return await read_people(connection, member_ids)

    async def link(self, command: LinkCommand, asked: frozenset[Side], gave_way: frozenset[str]) -> Linked:
        """See handlers.LinkStore."""
        member_ids = [one.member_id for one in command.named]
        locked: set[str] = set(member_ids)
        for attempt in count(1):
            try:
                async with transaction(self._pool, verify=_applied(command, command.named[0].member_id)) as connection:
                    locked |= await _lock_people(connection, member_ids, locked)
                    return await self._link(connection, command, asked, gave_way)
            except _PeopleMovedError as moved:
                locked |= moved.subject_ids
                if attempt >= TRIES_MAX:
                    raise _contended() from moved
            except ServiceError as error:
                if error.reason not in AGAIN or attempt >= OUTCOME_TRIES_MAX:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _link(
        self, connection: Connection, command: LinkCommand, asked: frozenset[Side], gave_way: frozenset[str]
    ) -> Linked:
        command = await _with_own_id(connection, command, command.named[0].member_id)
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
        new = Link(command.link_id, row["link_order"], row["linked_at"], named, gave_way)
        change = link(new, command.named, people)
        assert not change.is_full, "the people are those for whom room was made"
        await append_in(connection, [_append(command.link_id, 0, change, row["linked_at"], command)])
        await note_streams(connection, command.link_id, _named_in(change.facts))
        namespaces = {one.member_id: one.namespace.name for subject in people.values() for one in subject.members}
        leaving = sorted(gave_way)
        await connection.execute(
            INSERT_LINK_MEMBERS_SQL,
            command.link_id,
            [*(one.member_id for one in named), *leaving],
            [*(one.namespace.name for one in named), *(namespaces[one] for one in leaving)],
            [*[False] * len(named), *[True] * len(leaving)],
        )
        if leaving:
            await connection.execute(FORGET_STATEMENTS_SQL, leaving)
        await put_people(connection, change.people)
        return Linked(command.link_id, change.merged, tuple(leaving))

    async def unlink(self, command: UnlinkCommand) -> Sequence[str]:
        """See handlers.LinkStore."""
        async with acquire(self._pool) as connection:
            whose = await _anchor(connection, stream_id_of(command.link_id)) or ""
        for attempt in count(1):
            try:
                async with transaction(self._pool, verify=_applied(command, whose)) as connection:
                    await connection.execute(LOCK_ALL_SQL)
                    return await self._unlink(connection, await _with_own_id(connection, command, whose))
            except ServiceError as error:
                if error.reason not in AGAIN or attempt >= OUTCOME_TRIES_MAX:
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


Command = TypeVar("Command", LinkCommand, UnlinkCommand)


async def _with_own_id(connection: Connection, command: Command, member_id: str) -> Command:
    """The command with the request id that it has in the log; *member_id*: the strongest that its link names."""

    async def whose(stream_id: str) -> str | None:
        return await _anchor(connection, stream_id)

    own = await own_request_id(connection, command.request_id, command.digest, member_id=member_id, whose=whose)
    return replace(command, request_id=own)


def _applied(command: LinkCommand | UnlinkCommand, member_id: str) -> Verify:
    return command_applied(command.digest, command.request_id, scoped_request_id(command.request_id, member_id))


async def _anchor(connection: Connection, stream_id: str) -> str | None:
    """The strongest member that the link of a stream names; None where there is no such link."""
    payload = await connection.fetchval(FIRST_PAYLOAD_SQL, stream_id)
    if payload is None:
        return None
    return min(wire.linked_of(payload).named, key=lambda one: one.rank).member_id


async def _made(connection: Connection, command: LinkCommand) -> Linked | None:
    """What the command did when it was applied, or the link that says the same."""
    done = await find_command(connection, command.request_id, command.digest)
    if done is not None:
        stream_id = await connection.fetchval(COMMAND_STREAM_SQL, command.request_id)
        if await connection.fetchval(NAMES_ERASED_SQL, _link_id(stream_id)):
            raise subject_erased()
        merged = await connection.fetchval(WAS_MERGED_SQL, stream_id, done.version, wire.SUBJECTS_MERGED)
        rows = await connection.fetch(GAVE_WAY_SQL, _link_id(stream_id))
        return Linked(_link_id(stream_id), merged, tuple(row["member_id"] for row in rows))
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
    strong = [one.name for one in NAMESPACES.values() if one.strong]
    member_ids = [one.member_id for one in command.named]
    row = await connection.fetchrow(LINKS_COUNT_SQL, member_ids, strong, LINKS_STRONG_MAX, LINKS_MAX)
    if row is not None:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "IDENTITY_SHARED_TOO_OFTEN",
            f"the {row['namespace']} is named by {row['count']} links: it tells nothing any more, leave it out",
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
            tuple(Named(NAMESPACES[one["namespace"]], one["member_id"]) for one in members if not one["gave_way"]),
            frozenset(one["member_id"] for one in members if one["gave_way"]),
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
