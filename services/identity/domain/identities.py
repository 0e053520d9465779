"""Identities, how strong they are, and the pseudonyms that are derived from them.

A pseudonym is a keyed hash, so an identity that nobody linked costs no write and no read to name. Values are used here
and nowhere else: nothing that leaves this module holds one.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

# 128 bits: two of 10^12 identities collide with a probability below 10^-14.
MEMBER_BYTES = 16


class Level(IntEnum):
    """How well a person is known; the numbers are those of comity.common.v1.SubjectLevel."""

    UNSPECIFIED = 0
    ANONYMOUS = 1
    PSEUDONYMOUS = 2
    KNOWN = 3


@dataclass(frozen=True, slots=True)
class Namespace:
    """A kind of identifier.

    Args:
        rank: 0 is the strongest; of e-mail and phone, which are equally strong, one has to come first.
        strong: names one person wherever it is presented, so a link with it may merge two subjects.
        authoritative: two values are two people, whatever else they share.
        hashed: the value is the SHA-256 of what names the person.
        purpose: must be allowed before anybody is linked to it or recognized by it; empty: none. Such an identity is
            not the person's own doing: it is read off their machine, or bought.
    """

    name: str
    rank: int
    level: Level
    strong: bool = False
    authoritative: bool = False
    hashed: bool = False
    purpose: str = ""


USER_ID = Namespace("user_id", 0, Level.KNOWN, strong=True, authoritative=True)
EMAIL = Namespace("email_sha256", 1, Level.KNOWN, strong=True, hashed=True)
PHONE = Namespace("phone_sha256", 2, Level.KNOWN, strong=True, hashed=True)
ANONYMOUS_ID = Namespace("anonymous_id", 3, Level.PSEUDONYMOUS)
DEVICE_ID = Namespace("device_id", 4, Level.ANONYMOUS)
SESSION_ID = Namespace("session_id", 5, Level.ANONYMOUS)
DEVICE_FINGERPRINT = Namespace("device_fingerprint", 6, Level.ANONYMOUS, purpose="device_recognition")
THIRD_PARTY_ID = Namespace("third_party_id", 7, Level.ANONYMOUS, purpose="third_party_matching")

NAMESPACES = {
    one.name: one
    for one in (USER_ID, EMAIL, PHONE, ANONYMOUS_ID, DEVICE_ID, SESSION_ID, DEVICE_FINGERPRINT, THIRD_PARTY_ID)
}


@dataclass(frozen=True, slots=True)
class Identity:
    """An identifier as a caller presents it."""

    namespace: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pseudonym:
    """What is kept of an identity.

    Args:
        identity_hash: HMAC-SHA256 of namespace and value under the pepper, 32 bytes; of a later generation, of the
            first one's hash and its number.
        member_id: the first half of that, as 26 characters of base32.
    """

    namespace: Namespace
    identity_hash: bytes
    member_id: str

    @property
    def rank(self) -> tuple[int, str]:
        """Sorts the strongest first; the same whatever order the identities were presented in."""
        return (self.namespace.rank, self.member_id)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Why identities cannot be one person's, or nobody can be told from them; holds no value of them.

    Args:
        reason: stable word for programs.
    """

    problem: str
    reason: str = "IDENTITIES_INVALID"


def pseudonym(pepper: bytes, identity: Identity) -> Pseudonym:
    """The pseudonym of an identity in a known namespace.

    The zero byte keeps ("ab", "c") and ("a", "bc") apart; neither part can hold one.
    """
    message = f"{identity.namespace}\0{identity.value}".encode()
    identity_hash = hmac.digest(pepper, message, hashlib.sha256)
    return Pseudonym(NAMESPACES[identity.namespace], identity_hash, member_id_of(identity_hash))


def next_generation(pepper: bytes, first: Pseudonym, number: int) -> Pseudonym:
    """The pseudonym of the same identity after its person was erased *number* times, *number* > 0.

    Nobody without the pepper can tell that the two belong together. A message that begins with a zero byte is none of
    `pseudonym`'s: namespaces are not empty.
    """
    message = b"\0generation\0%d\0%b" % (number, first.identity_hash)
    identity_hash = hmac.digest(pepper, message, hashlib.sha256)
    return Pseudonym(first.namespace, identity_hash, member_id_of(identity_hash))


def member_id_of(identity_hash: bytes) -> str:
    """The pseudonym that belongs to an identity's keyed hash: `[a-z2-7]{26}`."""
    return base64.b32encode(identity_hash[:MEMBER_BYTES]).decode().rstrip("=").lower()


def pseudonyms(pepper: bytes, identities: Sequence[Identity]) -> tuple[Pseudonym, ...] | Contradiction:
    """The distinct pseudonyms of identities presented together, strongest first, or why they cannot be one person's.

    Args:
        identities: as `presented` gives them.
    """
    if not identities:
        return Contradiction("present at least one identity")
    distinct = {one.member_id: one for one in (pseudonym(pepper, identity) for identity in identities)}
    return _consistent(distinct.values())


def _consistent(found: Iterable[Pseudonym]) -> tuple[Pseudonym, ...] | Contradiction:
    ordered = tuple(sorted(found, key=lambda one: one.rank))
    for stronger, weaker in pairwise(ordered):
        if stronger.namespace.authoritative and stronger.namespace is weaker.namespace:
            return Contradiction(f"two different values of {weaker.namespace.name} name two people: present one")
    return ordered
