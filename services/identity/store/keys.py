"""Keeps data keys, wrapped by a key-encryption key that is in no database."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import asyncpg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.chassis.clock import Clock
from services.chassis.dead_letters import letter_of, put_aside_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.tracing import traceparent
from services.identity import wire
from services.identity.domain.facts import DataKeyMinted
from services.identity.domain.keys import KEY_BYTES, DataKey

NONCE_BYTES = 12

# A member who was erased before it had a key has none for ever, as though it had been destroyed.
# Subqueries around the array: see SUBJECTS_SQL of subjects.py.
KEYS_SQL = """
SELECT member_id, key_id, wrapped FROM data_keys WHERE member_id = ANY((SELECT $1::text[])::text[])
UNION ALL
SELECT e.member_id, '', NULL FROM erased_members e
WHERE e.member_id = ANY((SELECT $1::text[])::text[])
  AND (SELECT true FROM data_keys k WHERE k.member_id = e.member_id) IS NULL
"""
# In order of member, so that two that mint the same members wait for each other in one direction only.
MINT_SQL = """
INSERT INTO data_keys (member_id, key_id, wrapped)
SELECT m, k, w FROM unnest($1::text[], $2::text[], $3::bytea[]) AS a(m, k, w)
WHERE (SELECT true FROM erased_members e WHERE e.member_id = a.m FOR KEY SHARE) IS NULL ORDER BY m
ON CONFLICT (member_id) DO NOTHING
RETURNING member_id, key_id, wrapped
"""


class Wrapping:
    """Makes data keys, and hides them from whoever reads the database: AES-256-GCM under the KEK.

    Bound to member and key id, so that a row cannot be passed off as another member's.
    """

    def __init__(self, kek: bytes) -> None:
        # Whatever its length and alphabet, all of the secret goes into the 32 bytes that AES-256 takes.
        self._aead = AESGCM(hmac.digest(kek, b"comity data key wrapping", hashlib.sha256))

    def fresh(self, member_id: str, key_id: str) -> bytes:
        """A new data key, wrapped."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, os.urandom(KEY_BYTES), _bound_to(member_id, key_id))

    def unwrap(self, member_id: str, key_id: str, wrapped: bytes) -> bytes:
        """The data key.

        Raises:
            ServiceError: INTERNAL (DATA_KEY_BROKEN) when it was not wrapped like this, with this KEK.
        """
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, sealed, _bound_to(member_id, key_id))
        except (InvalidTag, ValueError) as error:  # a value of another length than any that was wrapped
            raise ServiceError(
                Kind.INTERNAL, "DATA_KEY_BROKEN", "a data key does not open: the row was changed, or the KEK was"
            ) from error


class PostgresKeys:
    """handlers.KeyStore."""

    def __init__(self, pool: Pool, wrapping: Wrapping, clock: Clock) -> None:
        self._pool = pool
        self._wrapping = wrapping
        self._clock = clock

    async def keys(self, member_ids: Sequence[str]) -> dict[str, DataKey]:
        """See handlers.KeyStore."""
        async with acquire(self._pool) as connection:
            return await self._read(connection, member_ids)

    async def mint(self, member_ids: Sequence[str]) -> dict[str, DataKey]:
        """See handlers.KeyStore."""
        wanted, now = sorted(member_ids), self._clock.now()
        key_ids = [uuid7(now) for _ in wanted]
        wrapped = [self._wrapping.fresh(member, key) for member, key in zip(wanted, key_ids, strict=True)]
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(MINT_SQL, wanted, key_ids, wrapped)
            if rows:
                await append_in(connection, [_append(row, now) for row in rows])
            found = {row["member_id"]: self._key(row) for row in rows}
            # Those that somebody else was faster with, or that are destroyed: a statement of its own sees them.
            lost = [member for member in wanted if member not in found]
            return found | (await self._read(connection, lost) if lost else {})

    async def _read(self, connection: Connection, member_ids: Sequence[str]) -> dict[str, DataKey]:
        rows = await connection.fetch(KEYS_SQL, list(member_ids))
        return {row["member_id"]: await self._key_or_none(connection, row) for row in rows}

    async def _key_or_none(self, connection: Connection, row: asyncpg.Record) -> DataKey:
        """The key of a row; of one that does not open none, so that whoever is asked for with it keeps theirs."""
        try:
            return self._key(row)
        except ServiceError as error:
            letter = letter_of(error, "identity", "data keys", channel="data_keys")
            await put_aside_in(connection, replace(letter, subject_id=row["member_id"]))
            return DataKey(row["member_id"])

    def _key(self, row: asyncpg.Record) -> DataKey:
        member_id, key_id, wrapped = row["member_id"], row["key_id"], row["wrapped"]
        if wrapped is None:
            return DataKey(member_id, destroyed=True)
        return DataKey(member_id, key_id, self._wrapping.unwrap(member_id, key_id, wrapped))


def _append(row: asyncpg.Record, now: datetime) -> Append:
    event_type, payload = wire.encode(DataKeyMinted(row["member_id"], row["key_id"]))
    event = NewEvent(uuid7(now), event_type, payload, now, row["member_id"], traceparent())
    return Append(f"key-{row['member_id']}", 0, (event,))


def _bound_to(member_id: str, key_id: str) -> bytes:
    return f"{member_id}|{key_id}".encode()
