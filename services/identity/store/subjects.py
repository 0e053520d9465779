"""Reads who is who."""

from collections.abc import Iterable, Sequence

import asyncpg

from services.chassis.postgres import Connection, Pool, acquire
from services.identity.domain.identities import NAMESPACES
from services.identity.domain.resolution import Found, SubjectMember
from services.identity.domain.subjects import LinkNote, Member, Subject, subject_of

SUBJECTS_SQL = """
SELECT member_id, subject_id, namespace, born, merged_at FROM subject_members
WHERE subject_id IN (SELECT subject_id FROM subject_members WHERE member_id = ANY($1::text[]))
"""

LINKS_SQL = """
SELECT l.link_id, l.linked_at, array_agg(m.namespace ORDER BY m.namespace) AS namespaces
FROM links l JOIN link_members m USING (link_id)
WHERE l.link_id IN (SELECT link_id FROM link_members WHERE member_id = ANY($1::text[]))
GROUP BY l.link_order, l.link_id, l.linked_at ORDER BY l.link_order
"""


class PostgresSubjects:
    """handlers.SubjectReader."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def subjects(self, member_ids: Sequence[str]) -> Found:
        """See handlers.SubjectReader."""
        async with acquire(self._pool) as connection:
            people = await read_people(connection, member_ids)
        found: dict[str, tuple[SubjectMember, ...]] = {}
        for subject in set(people.values()):
            members = tuple(SubjectMember(one.member_id, one.merged_at) for one in subject.members)
            found |= dict.fromkeys((one.member_id for one in members), members)
        return found

    async def links(self, member_ids: Sequence[str]) -> list[LinkNote]:
        """See handlers.SubjectReader."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(LINKS_SQL, list(member_ids))
        return [LinkNote(row["link_id"], row["linked_at"], tuple(row["namespaces"])) for row in rows]


async def read_people(connection: Connection, member_ids: Sequence[str]) -> dict[str, Subject]:
    """The subjects of these members, by every member of theirs."""
    rows = await connection.fetch(SUBJECTS_SQL, list(member_ids))
    grouped: dict[str, list[Member]] = {}
    for row in rows:
        grouped.setdefault(row["subject_id"], []).append(_member(row))
    return by_member(subject_of(members) for members in grouped.values())


def by_member(subjects: Iterable[Subject]) -> dict[str, Subject]:
    """The subjects by every member of theirs."""
    return {member.member_id: subject for subject in subjects for member in subject.members}


def _member(row: asyncpg.Record) -> Member:
    return Member(row["member_id"], NAMESPACES[row["namespace"]], row["born"], row["merged_at"])
