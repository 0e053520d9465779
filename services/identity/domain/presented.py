"""Which of the identities that a caller presents say who somebody is, in the form that is hashed.

What programs send where they know nobody ("undefined", "null", "0", …) would make one person of all who come with it.
Such a placeholder is ignored, as an empty value is, and as one is that no program gives to anybody.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.chassis.visitors import identifies
from services.identity.domain.identities import NAMESPACES, Contradiction, Identity

# What JavaScript, Python, SQL and templates print for nothing; what analytics tools refuse as an id (PostHog's list is
# among these); the advertising id of a device that forbids tracking. Compared without case, quotes and outer space.
BUILT_IN = (
    *("undefined", "null", "none", "nil", "nan", "(null)", "<null>", "n/a", "void", "infinity"),
    *("[object object]", "[object undefined]", "[object null]", "{}", "[]"),
    *("true", "false", "0", "-1", "0.0"),
    *("anonymous", "anon", "guest", "unknown", "nobody", "not_authenticated", "(not set)", "not_set"),
    *("id", "user_id", "userid", "distinct_id", "distinctid", "anonymous_id", "email"),
    "00000000-0000-0000-0000-000000000000",
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AROUND = " \t\r\n\"'`"

NOBODY = Contradiction(
    "names nobody: what was given is empty, a placeholder (undefined, null, 0 and the like) or longer than any "
    "identity; present one that tells this person from others",
    "NOBODY_NAMED",
)


@dataclass(frozen=True, slots=True)
class Placeholders:
    """Values that name nobody, in whatever namespace.

    Args:
        texts: folded.
        hashes: SHA-256 of those and of nothing, hex: what is hashed before it is looked at.
    """

    texts: frozenset[str]
    hashes: frozenset[str]

    def hold(self, identity: Identity) -> bool:
        """Whether the identity names nobody."""
        if not identifies(identity.value):
            return True
        folded = _folded(identity.value)
        return not folded or folded in self.texts or folded in self.hashes


def placeholders(more: Iterable[str] = ()) -> Placeholders:
    """The built-in ones, and those that the site adds."""
    as_sent = {*BUILT_IN, *more}
    texts = {_folded(one) for one in as_sent}
    # Languages write one value in several ways, and who hashes it does so as it is written there.
    written = {"", *as_sent, *texts, *(one.upper() for one in texts), *(one.title() for one in texts), "NaN"}
    hashes = {hashlib.sha256(one.encode()).hexdigest() for one in (*written, "[object Object]")}
    return Placeholders(frozenset(texts), frozenset(hashes))


def presented(identities: Sequence[Identity], known: Placeholders) -> tuple[Identity, ...] | Contradiction:
    """Those that say who somebody is; hashes in lower case, so that one address is one person.

    Problems name the field and never the value.
    """
    for index, one in enumerate(identities):
        if one.namespace not in NAMESPACES:
            return Contradiction(f"identities[{index}].namespace is unknown: use one of {', '.join(NAMESPACES)}")
    usable: list[Identity] = []
    for index, one in enumerate(identities):
        if known.hold(one):
            continue
        if NAMESPACES[one.namespace].hashed:
            one = Identity(one.namespace, one.value.lower())
            if not _SHA256.fullmatch(one.value):
                return Contradiction(
                    f"identities[{index}].value is no SHA-256 in hex (64 characters of 0-9 and a-f): hash it yourself "
                    f"and send the digest, never what {one.namespace} was made from"
                )
        usable.append(one)
    return tuple(usable) if usable or not identities else NOBODY


def _folded(value: str) -> str:
    return value.strip(_AROUND).casefold()
