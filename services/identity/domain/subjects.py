"""Subjects: the fold of the links that stand, in the order in which they were made.

A link states that identities belong to one person. What follows from it:

- The strongest identity of a link is its anchor. Each of the others joins the anchor's subject, strongest first, if it
  may:
  - one that belongs to nobody else joins;
  - a weak one (anonymous, device or session id) that is already part of a subject brings that subject along only if the
    link has a strong identity and that subject has none. So a shared device stays with the first person who was linked
    to it, moves nothing when a second one is, and never makes them one;
  - a strong one (e-mail, phone) brings its subject along unless both sides have a user id: two user ids are two people,
    also when a family shares an e-mail address.
- Where a person would have more than MEMBERS_MAX members, those that the link says give way leave first: weak ones,
  never the earliest, persons of their own from then on. Who that is was decided when the link was made (room.py).
- A link that moved nothing still stands: it takes effect when the link that was in its way is taken back.
- The earliest member names the subject and decides its holdout bucket. Members that an earlier link names are earlier.
  Of those that a link names first, weak ones are earlier than strong ones (a visitor is anonymous before the first
  login, and keeps the bucket that was seen then); among equals the stronger is earlier, as Resolve answered with it.

Taking a link back folds the others again, so that nothing of it is left. No clock, no order of arrival within a link,
no I/O: the same links give the same subjects.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from services.identity.domain.identities import Namespace

# Readers combine the members of a subject at every read (SubjectRef, EvaluateQuery: items_max), so they are few.
MEMBERS_MAX = 32

_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Named:
    """A member as a link names it."""

    namespace: Namespace
    member_id: str

    @property
    def rank(self) -> tuple[int, str]:
        """Sorts the strongest first."""
        return (self.namespace.rank, self.member_id)


@dataclass(frozen=True, slots=True)
class Link:
    """A statement that stands.

    Args:
        order: of two links the later one has the higher.
        named: distinct members, in any order.
        gave_way: members that left the person to make room for it.
    """

    link_id: str
    order: int
    linked_at: datetime
    named: tuple[Named, ...]
    gave_way: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LinkNote:
    """A link as a person may see it: what kinds of identifiers, not which."""

    link_id: str
    linked_at: datetime
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One of a subject's pseudonyms.

    Args:
        born: order of the first link that names it.
        merged_at: when it joined the subject; None for the one that the subject began with.
    """

    member_id: str
    namespace: Namespace
    born: int
    merged_at: datetime | None = None

    @property
    def age(self) -> tuple[int, bool, int, str]:
        """Sorts the earliest first."""
        return (self.born, self.namespace.strong, self.namespace.rank, self.member_id)


@dataclass(frozen=True, slots=True)
class Subject:
    """A person: the earliest member, then the others in the order in which they joined."""

    members: tuple[Member, ...]

    @property
    def subject_id(self) -> str:
        """The earliest member."""
        return self.members[0].member_id

    @property
    def is_strong(self) -> bool:
        """Whether a strong identity is part of it."""
        return any(member.namespace.strong for member in self.members)

    @property
    def has_authority(self) -> bool:
        """Whether a user id is part of it."""
        return any(member.namespace.authoritative for member in self.members)

    def merged_at(self, member_ids: Iterable[str]) -> datetime:
        """When the last of these members joined; at least one of them did."""
        return max(
            one.merged_at for one in self.members if one.merged_at is not None and one.member_id in set(member_ids)
        )


# The subject of every member that a link names. Members that are not in it are persons of their own.
People = Mapping[str, Subject]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a link does to people.

    Args:
        people: the subjects of all the members concerned, after it.
        merged: two persons became one.
        is_full: a person would have had more than MEMBERS_MAX members; that join was left out.
    """

    people: People
    merged: bool
    is_full: bool


def subject_of(members: Iterable[Member]) -> Subject:
    """The subject with these members, exactly one of which never joined another."""
    return Subject(tuple(sorted(members, key=lambda one: (one.merged_at is not None, one.merged_at or _EVER, one.age))))


def apply(link: Link, people: People, *, members_max: int = MEMBERS_MAX) -> Effect:
    """What follows from a link, given the subjects of the members it names (others may be in *people* too)."""
    anchor, *others = sorted(link.named, key=lambda one: one.rank)
    after = {one.member_id: people.get(one.member_id) or _alone(one, link.order) for one in link.named}
    is_linked_strongly = anchor.namespace.strong
    merged = is_full = False
    for other in others:
        ours, theirs = after[anchor.member_id], after[other.member_id]
        if ours.subject_id == theirs.subject_id or not _may_join(
            ours, theirs, other, is_linked_strongly=is_linked_strongly
        ):
            continue
        stay = [one for one in (*ours.members, *theirs.members) if one.member_id not in link.gave_way]
        if len(stay) > members_max:
            is_full = True
            continue
        joined = _join(ours, theirs, link.linked_at)
        after |= dict.fromkeys((member.member_id for member in joined.members), joined)
        merged = True
    after |= _apart(after[anchor.member_id], link.gave_way)
    return Effect(after, merged, is_full)


def fold(links: Iterable[Link]) -> dict[str, Subject]:
    """The subjects that follow from these links and no others."""
    people: dict[str, Subject] = {}
    for link in sorted(links, key=lambda one: one.order):
        people.update(apply(link, people).people)
    return people


@dataclass(frozen=True, slots=True)
class Group:
    """Members that came to a subject, or left it, together."""

    subject_id: str
    member_ids: tuple[str, ...]


def changes(before: People, after: People) -> tuple[list[Group], list[Group]]:
    """The groups that left subjects, and those that came to subjects, between two states of the same members."""
    member_ids = sorted({*before, *after})
    was = {one: _subject_id(before, one) for one in member_ids}
    now = {one: _subject_id(after, one) for one in member_ids}
    return _groups(was, now), _groups(now, was)


def _may_join(ours: Subject, theirs: Subject, other: Named, *, is_linked_strongly: bool) -> bool:
    """Whether the subject of a weaker identity becomes part of the anchor's; see the top of this module."""
    if other.namespace.strong:
        return not (ours.has_authority and theirs.has_authority)
    return len(theirs.members) == 1 or (is_linked_strongly and not theirs.is_strong)


def _join(one: Subject, other: Subject, at: datetime) -> Subject:
    """The older subject with the younger one's members, which join it now."""
    older, younger = sorted((one, other), key=lambda subject: subject.members[0].age)
    return subject_of((*older.members, *(replace(member, merged_at=at) for member in younger.members)))


def _apart(subject: Subject, gave_way: frozenset[str]) -> dict[str, Subject]:
    """Those who give way as persons of their own, and the others without them; the earliest never gives way."""
    leaving = [one for one in subject.members[1:] if one.member_id in gave_way]
    stays = Subject(tuple(one for one in subject.members if one not in leaving))
    return {one.member_id: stays for one in stays.members} | {
        one.member_id: Subject((replace(one, merged_at=None),)) for one in leaving
    }


def _alone(named: Named, order: int) -> Subject:
    return Subject((Member(named.member_id, named.namespace, order),))


def _subject_id(people: People, member_id: str) -> str:
    subject = people.get(member_id)
    return member_id if subject is None else subject.subject_id


def _groups(here: Mapping[str, str], there: Mapping[str, str]) -> list[Group]:
    """For each subject here whose members are several there: each group but the one that has its earliest member."""
    groups: dict[str, dict[str, list[str]]] = {}
    for member_id, subject_id in here.items():
        groups.setdefault(subject_id, {}).setdefault(there[member_id], []).append(member_id)
    return [
        Group(subject_id, tuple(ids))
        for subject_id, others in groups.items()
        for ids in others.values()
        if subject_id not in ids
    ]
