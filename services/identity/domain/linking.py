"""The commands that change who is who, and the facts that follow from them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.identity.domain.facts import Fact, IdentityLinked, IdentityUnlinked, SubjectsMerged, SubjectsUnmerged
from services.identity.domain.identities import Pseudonym
from services.identity.domain.subjects import Effect, Link, People, apply, changes, fold

# A device in a library is linked to everyone who logs in there. Past this it names nobody, and taking back one of
# its links would fold all of them.
LINKS_MAX = 256
# A user id or an address is one person's, with a new browser at every login if need be: a day's for 13 years.
LINKS_STRONG_MAX = 5_000
# Links that hang together through shared identities, all of which are folded when one of them is taken back.
LINKS_FOLDED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class LinkCommand:
    """States that identities belong to one person.

    Args:
        link_id: for the link, if it is a new one.
        named: distinct, strongest first; the generations of now.
        presented: the first generations of the same: what the caller said, whoever was erased since.
    """

    request_id: str
    link_id: str
    named: tuple[Pseudonym, ...]
    presented: tuple[Pseudonym, ...]

    @property
    def statement(self) -> bytes:
        """What is stated, whatever the order: SHA-256 of the identities' keyed hashes."""
        return _statement(self.named)

    @property
    def digest(self) -> bytes:
        """Tells this command from others under the same request id."""
        return hashlib.sha256(b"link\0" + _statement(self.presented)).digest()


@dataclass(frozen=True, slots=True)
class Linked:
    """What became of a LinkCommand.

    Args:
        merged: two persons became one.
        gave_way: members that left the person to make room.
    """

    link_id: str
    merged: bool
    gave_way: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnlinkCommand:
    """Takes a link back."""

    request_id: str
    link_id: str

    @property
    def digest(self) -> bytes:
        """Tells this command from others under the same request id."""
        return hashlib.sha256(b"unlink\0" + self.link_id.encode()).digest()


@dataclass(frozen=True, slots=True)
class Change:
    """People after a command, and what is to be recorded of it.

    Args:
        people: the subjects of the members concerned; a member that was concerned and is absent is linked no more.
        is_full: a person would have had more than MEMBERS_MAX members.
    """

    people: People
    facts: tuple[Fact, ...]
    merged: bool = False
    is_full: bool = False


def link(new: Link, named: tuple[Pseudonym, ...], people: People) -> Change:
    """What a new link changes, given the subjects of the members it names."""
    effect: Effect = apply(new, people)
    after = {**people, **effect.people}
    subject = after[named[0].member_id]
    linked = IdentityLinked(new.link_id, subject.subject_id, named, tuple(sorted(new.gave_way)))
    return Change(after, (linked, *_consequences(new.link_id, people, after)), effect.merged, effect.is_full)


def unlink(link_id: str, links: Iterable[Link]) -> Change:
    """What taking a link back changes, given it and all links that hang together with it."""
    standing = list(links)
    taken_back = next(one for one in standing if one.link_id == link_id)
    before = fold(standing)
    after = fold(one for one in standing if one is not taken_back)
    anchor = min(taken_back.named, key=lambda one: one.rank)
    unlinked = IdentityUnlinked(link_id, before[anchor.member_id].subject_id)
    return Change(after, (unlinked, *_consequences(link_id, before, after)))


def without(links: Iterable[Link], member_ids: frozenset[str]) -> list[Link]:
    """The links as though these members had never been: they name the others only; one that names nobody is gone.

    A link that names a single member states nothing, and stays: it says since when that member is known, so that who is
    earliest, and with that the name and the holdout bucket of those who stay, does not change.
    """
    left = [
        replace(
            link,
            named=tuple(one for one in link.named if one.member_id not in member_ids),
            gave_way=link.gave_way - member_ids,
        )
        for link in links
    ]
    return [link for link in left if link.named]


def _statement(named: Iterable[Pseudonym]) -> bytes:
    return hashlib.sha256(b"".join(sorted(one.identity_hash for one in named))).digest()


def _consequences(link_id: str, before: People, after: People) -> list[Fact]:
    """What became apart and what became one; the link is the one that was made or taken back."""
    unmerged, merged = changes(before, after)
    apart = [SubjectsUnmerged(link_id, group.subject_id, group.member_ids) for group in unmerged]
    together = [
        SubjectsMerged(link_id, group.subject_id, group.member_ids, after[group.subject_id].merged_at(group.member_ids))
        for group in merged
    ]
    return [*apart, *together]
