"""Whom a model was trained on, as small as it can be kept and still be searched: digests, sorted, by first byte."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

# Half a SHA-256: among ten million people two share one with a chance of 10^-25.
FINGERPRINT_BYTES = 16


def fingerprint(member_id: str) -> bytes:
    """What is kept of a member."""
    return hashlib.sha256(member_id.encode()).digest()[:FINGERPRINT_BYTES]


def packed(fingerprints: Iterable[bytes]) -> dict[int, bytes]:
    """Rows by first byte, each its fingerprints in ascending order, none twice."""
    rows: dict[int, list[bytes]] = defaultdict(list)
    for each in sorted(set(fingerprints)):
        rows[each[0]].append(each)
    return {first: b"".join(row) for first, row in rows.items()}


def unpacked(row: bytes) -> list[bytes]:
    """The fingerprints of a row."""
    assert len(row) % FINGERPRINT_BYTES == 0, "a row is whole fingerprints"
    return [row[start : start + FINGERPRINT_BYTES] for start in range(0, len(row), FINGERPRINT_BYTES)]


def merged(row: bytes, other: bytes) -> bytes:
    """Two rows as one."""
    return b"".join(sorted({*unpacked(row), *unpacked(other)}))


def without(row: bytes, gone: Iterable[bytes]) -> bytes | None:
    """The row without these; None where it held none of them."""
    leaving = set(gone)
    held = unpacked(row)
    left = [each for each in held if each not in leaving]
    return None if len(left) == len(held) else b"".join(left)
