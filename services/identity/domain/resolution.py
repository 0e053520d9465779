"""Answers to "who is this": what has to be looked up for a query, and what follows from what was found."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.identity.domain.identities import Contradiction, Identity, Level, Namespace, Pseudonym, pseudonyms

BUCKETS_COUNT = 10_000


@dataclass(frozen=True, slots=True)
class Query:
    """Who is meant: identities, or a pseudonym."""

    identities: tuple[Identity, ...] = field(default=(), repr=False)
    subject_id: str = ""


@dataclass(frozen=True, slots=True)
class Sought:
    """The one member that a query turns on, and how well its identities say who it is.

    Args:
        gated: the kind of identity that only recognizes who was linked to it, and only where its purpose is allowed;
            None for all others.
        first: the identity's first pseudonym, from which its later generations follow; None where a pseudonym is
            sought: whoever was erased is not found by it again.
    """

    member_id: str
    level: Level
    gated: Namespace | None = None
    first: Pseudonym | None = None


@dataclass(frozen=True, slots=True)
class SubjectMember:
    """A pseudonym of a person, and when it joined; None for the one that the person began with."""

    member_id: str
    merged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What was looked up.

    Args:
        subjects: the members of the subjects, by each member; absent for one that no link names.
        erased: those of the members looked up who were erased.
    """

    subjects: Mapping[str, tuple[SubjectMember, ...]] = field(default_factory=dict)
    erased: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Resolved:
    """Who a query means.

    Args:
        subject_id: canonical pseudonym.
        member_id: what facts that come with this query are recorded under.
        holdout_bucket: in [0, 10000).
        members: the canonical one first.
        required_purposes: must be allowed before this answer may be used at all.
    """

    subject_id: str
    member_id: str
    level: Level
    holdout_bucket: int
    members: tuple[SubjectMember, ...]
    required_purposes: tuple[str, ...] = ()


def seek(pepper: bytes, query: Query) -> Sought | Contradiction:
    """What to look up: the strongest identity says who it is, whatever the weaker ones are linked to.

    A user id that was never linked is a person of its own even where the device presented with it is somebody's.
    """
    if query.subject_id and query.identities:
        return Contradiction("give identities or subject_id, not both")
    if query.subject_id:
        return Sought(query.subject_id, Level.UNSPECIFIED)
    if not query.identities:
        return Contradiction("give identities or subject_id")
    found = pseudonyms(pepper, query.identities)
    return found if isinstance(found, Contradiction) else seek_strongest(found)


def seek_strongest(found: tuple[Pseudonym, ...]) -> Sought:
    """What to look up for pseudonyms, strongest first.

    Those that need a purpose are the weakest: beside any other they say nothing.
    """
    strongest = found[0]
    gated = strongest.namespace if strongest.namespace.purpose else None
    return Sought(strongest.member_id, strongest.namespace.level, gated, strongest)


def answer(sought: Sought, found: Found, holdout_salt: str) -> Resolved | Contradiction:
    """Who it is, from what was found."""
    if sought.member_id in found.erased:
        return ERASED
    linked = found.subjects.get(sought.member_id)
    if sought.gated is not None and linked is None:
        return _nobody(sought.gated)
    members = linked or (SubjectMember(sought.member_id),)
    subject_id = members[0].member_id
    bucket = holdout_bucket(holdout_salt, subject_id)
    required = () if sought.gated is None else (sought.gated.purpose,)
    return Resolved(subject_id, sought.member_id, sought.level, bucket, members, required)


# To whom an erased pseudonym belonged is not known any more; a person who comes back is another subject.
ERASED = Contradiction(
    "the person was erased: give the identities as they come, which name a new subject from then on", "SUBJECT_ERASED"
)


def _nobody(gated: Namespace) -> Contradiction:
    """Making somebody up for it would be the recognition that nobody has agreed to yet."""
    problem = (
        f"{gated.name} alone names nobody here: present an identity of the person's own, such as anonymous_id, and "
        f"link the two once the person has granted {gated.purpose}"
    )
    return Contradiction(problem, "NAMESPACE_NOT_ALLOWED")


def holdout_bucket(salt: str, subject_id: str) -> int:
    """The bucket of a person, even over [0, 10000).

    It hangs on the earliest member, which a later merge does not change. Taken of 64 bits, so that the buckets differ
    in size by less than one in 10^15.
    """
    digest = hashlib.sha256(f"{salt}\0{subject_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % BUCKETS_COUNT
