"""Whether people may be linked: whom a link would join, and what they have said about being linked.

Linking needs a purpose, and so does an identity that recognizes people without their help. One side's yes is enough,
because whoever logs in speaks for the visitor that they were; a no of any side is a no, because it was said by somebody
who would be part of the person.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeAlias

from services.identity.domain.identities import Pseudonym
from services.identity.domain.resolution import SubjectMember
from services.identity.domain.subjects import Link, Named, People, Subject, apply

IDENTITY_LINKING = "identity_linking"

# A trial link is later than every other; who joins whom does not hang on how much later.
_TRIAL_ORDER = 2**62
_TRIAL_AT = datetime.max.replace(tzinfo=UTC)
_UNBOUNDED = 2**31

# What the browser or consent platform says with the request: carried to consent as it came, and read and kept nowhere.
Signals: TypeAlias = Any
# The members of a person whom a link would join, the canonical one first.
Side: TypeAlias = tuple[SubjectMember, ...]


class Word(Enum):
    """What a side has said about a purpose: what stands for it now."""

    YES = "yes"
    NO = "no"
    # Never asked, or what was said has expired: no permission, and no refusal.
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a link may not be made.

    Args:
        refused: a side has said no; else no side has said yes.
    """

    purpose: str
    refused: bool


def required_purposes(named: Sequence[Pseudonym]) -> tuple[str, ...]:
    """The purposes that a link of these identities needs."""
    return (IDENTITY_LINKING, *(one.namespace.purpose for one in named if one.namespace.purpose))


def sides(named: Sequence[Pseudonym], people: People) -> frozenset[Side]:
    """The persons whom a link of these identities would make one; only the anchor's where it would join nobody.

    A person whom the link leaves alone (the owner of a shared device) has no say in it, and nothing that they said can
    be learned from whether it is made.
    """
    joined = tried(named, people)
    return frozenset(_side(people.get(one.member_id), one.member_id) for one in joined.members)


def tried(named: Sequence[Pseudonym], people: People) -> Subject:
    """The person whom a link of these identities would make, however many members that has."""
    ids = tuple(Named(one.namespace, one.member_id) for one in named)
    effect = apply(Link("", _TRIAL_ORDER, _TRIAL_AT, ids), people, members_max=_UNBOUNDED)
    return effect.people[named[0].member_id]


def denial(purposes: Sequence[str], words: Sequence[Mapping[str, Word]]) -> Denial | None:
    """The first purpose that the sides do not allow, given each side's words; None when the link may be made."""
    for purpose in purposes:
        said = [one.get(purpose, Word.NOTHING) for one in words]
        if Word.NO in said:
            return Denial(purpose, refused=True)
        if Word.YES not in said:
            return Denial(purpose, refused=False)
    return None


def _side(subject: Subject | None, member_id: str) -> Side:
    if subject is None:
        return (SubjectMember(member_id),)
    return tuple(SubjectMember(one.member_id, one.merged_at) for one in subject.members)
