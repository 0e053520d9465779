"""Reads who is who."""

from collections.abc import Iterable, Sequence

import asyncpg

from services.chassis.postgres import Connection, Pool, acquire
from services.identity.domain.identities import NAMESPACES
from services.identity.domain.resolution import Found, SubjectMember
from services.identity.domain.subjects import LinkNote, Member, Subject, subject_of

# Whoever is erased is left out of every subject from the moment they are on the suppress list; those asked for who are
# on it come back without a subject. One statement, so that who was erased costs nobody else a round trip. The members
# come out of subqueries of their own, so that the plan does not depend on how many they are: else Postgres plans every
# read anew as long as there are few, which costs more than the read.
SUBJECTS_SQL = """
SELECT s.member_id, s.subject_id, s.namespace, s.born, s.merged_at FROM subject_members s
WHERE s.subject_id IN (SELECT subject_id FROM subject_members WHERE member_id = ANY((SELECT $1::text[])::text[]))
  AND (SELECT true FROM erased_members e WHERE e.member_id = s.member_id) IS NULL
UNION ALL
SELECT member_id, NULL, NULL, NULL, NULL FROM erased_members WHERE member_id = ANY((SELECT $1::text[])::text[])
"""

LINKS_SQL = """
SELECT l.link_id, l.linked_at, array_agg(m.namespace ORDER BY m.namespace) AS namespaces
FROM links l JOIN link_members m USING (link_id)
WHERE NOT m.gave_way
  AND l.link_id IN (SELECT link_id FROM link_members WHERE member_id = ANY($1::text[]) AND NOT gave_way)
GROUP BY l.link_order, l.link_id, l.linked_at ORDER BY l.link_order
"""


class PostgresSubjects:
    """handlers.SubjectReader."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def subjects(self, member_ids: Sequence[str]) -> Found:
        """See handlers.SubjectReader."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(SUBJECTS_SQL, list(member_ids))
        found: dict[str, tuple[SubjectMember, ...]] = {}
        for subject in set(_people(rows).values()):
            first, *others = subject.members
            # The member that the subject began with has never joined it, also where an earlier one was erased.
            members = (SubjectMember(first.member_id), *(SubjectMember(one.member_id, one.merged_at) for one in others))
            found |= dict.fromkeys((one.member_id for one in members), members)
        return Found(found, frozenset(row["member_id"] for row in rows if row["subject_id"] is None))

    async def links(self, member_ids: Sequence[str]) -> list[LinkNote]:
        """See handlers.SubjectReader."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(LINKS_SQL, list(member_ids))
        return [LinkNote(row["link_id"], row["linked_at"], tuple(row["namespaces"])) for row in rows]


async def read_people(connection: Connection, member_ids: Sequence[str]) -> dict[str, Subject]:
    """The subjects of these members, by every member of theirs."""
    return _people(await connection.fetch(SUBJECTS_SQL, list(member_ids)))


def _people(rows: Iterable[asyncpg.Record]) -> dict[str, Subject]:
    grouped: dict[str, list[Member]] = {}
    for row in rows:
        if row["subject_id"] is not None:
            grouped.setdefault(row["subject_id"], []).append(_member(row))
    return by_member(subject_of(members) for members in grouped.values())


def by_member(subjects: Iterable[Subject]) -> dict[str, Subject]:
    """The subjects by every member of theirs."""
    return {member.member_id: subject for subject in subjects for member in subject.members}


def _member(row: asyncpg.Record) -> Member:
    return Member(row["member_id"], NAMESPACES[row["namespace"]], row["born"], row["merged_at"])
