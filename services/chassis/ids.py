"""Identifiers, content hashes and partitions. Chance comes in here and nowhere below."""

import hashlib
import os
from datetime import datetime
from uuid import UUID

PARTITIONS_COUNT = 16


def uuid7(now: datetime, chance: bytes | None = None) -> str:
    """A time-ordered UUIDv7 for *now*; *chance* is 10 random bytes, drawn here when not given.

    Source: RFC 9562, section 5.7.
    """
    chance = os.urandom(10) if chance is None else chance
    unix_ms = int(now.timestamp() * 1000)
    value = (unix_ms << 80) | int.from_bytes(chance, "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(UUID(int=value))


def content_hash(data: bytes) -> str:
    """The version of anything declared: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def partition_of(key: str) -> int:
    """The channel partition, in [0, 16), that every event with this key travels in; stable for ever."""
    return hashlib.sha256(key.encode()).digest()[0] % PARTITIONS_COUNT
