"""Keeps the policy of the site: every version of it, and which one holds."""

import math
import time
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import TypeVar

import asyncpg

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.clock import Clock
from services.chassis.dead_letters import Rows
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.tracing import traceparent
from services.consent import wire
from services.consent.domain.notices import Notice
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import Purpose
from services.consent.domain.regimes import Jurisdiction, Regime
from services.consent.domain.signals.mapping import PurposeRule

T = TypeVar("T")

STREAM = "policy"
# Versions kept in memory. More than one, because a snapshot taken just before a change is still evaluated after it.
VERSIONS_MAX = 4
# So soon a version of which something could not be read is read again: somebody may have mended it.
AGAIN_S = 1.0

LOCK_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('consent.policy', 0))"
ACTIVE_SQL = "SELECT policy_version, stream_version FROM active_policy"
PURPOSES_SQL = """
SELECT purpose, description, legal_basis, owner, retention_days, version FROM policy_purposes WHERE policy_version = $1
"""
PUT_PURPOSES_SQL = """
INSERT INTO policy_purposes (policy_version, purpose, description, legal_basis, owner, retention_days, version)
SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::int[])
ON CONFLICT DO NOTHING
"""
TERMS_SQL = "SELECT policy_version, purpose, personalizes, signals FROM policy_terms WHERE policy_version = $1"
PUT_TERMS_SQL = """
INSERT INTO policy_terms (policy_version, purpose, personalizes, signals)
SELECT $1, * FROM unnest($2::text[], $3::boolean[], $4::bytea[]) ON CONFLICT DO NOTHING
"""
NOTICES_SQL = "SELECT policy_version, notice_version, notice FROM policy_notices WHERE policy_version = $1"
PUT_NOTICES_SQL = """
INSERT INTO policy_notices (policy_version, notice_version, notice)
SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ON CONFLICT DO NOTHING
"""
JURISDICTIONS_SQL = """
SELECT policy_version, jurisdiction, declared FROM policy_jurisdictions WHERE policy_version = $1
"""
PUT_JURISDICTIONS_SQL = """
INSERT INTO policy_jurisdictions (policy_version, jurisdiction, declared)
SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ON CONFLICT DO NOTHING
"""
CONTROLLER_SQL = "SELECT controller FROM policy_controllers WHERE policy_version = $1"
PUT_CONTROLLER_SQL = """
INSERT INTO policy_controllers (policy_version, controller) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""
# Of a version of which not everything can be read: it is put there again.
FORGET_SQL = """
WITH notices AS (DELETE FROM policy_notices WHERE policy_version = $1),
     jurisdictions AS (DELETE FROM policy_jurisdictions WHERE policy_version = $1)
DELETE FROM policy_terms WHERE policy_version = $1
"""
PUT_ACTIVE_SQL = "UPDATE active_policy SET policy_version = $1, stream_version = $2"


class PostgresPolicies:
    """handlers.ledger.PolicyStore; remembers versions it has read, which never change.

    Args:
        controller: of versions that name none, which releases before published.
    """

    def __init__(self, pool: Pool, clock: Clock, *, controller: str = "") -> None:
        self._pool = pool
        self._clock = clock
        self._controller = controller
        self._known: dict[str, Policy] = {"": Policy()}
        # Versions of which something could not be read, and when they are read again.
        self._again_at_s: dict[str, float] = {}
        self.rows = tuple(
            Rows(pool, "consent", "policy", table, "policy_version", key)
            for table, key in (
                ("policy_terms", "purpose"),
                ("policy_notices", "notice_version"),
                ("policy_jurisdictions", "jurisdiction"),
            )
        )

    async def policy(self) -> Policy:
        """See handlers.ledger.PolicyStore."""
        async with acquire(self._pool) as connection:
            return await self.version_in(connection, await connection.fetchval(ACTIVE_SQL))

    async def publish(self, decide: Callable[[Policy], Policy]) -> Policy:
        """See handlers.ledger.PolicyStore."""
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SQL)
            active = await connection.fetchrow(ACTIVE_SQL)
            assert active is not None, "the migration puts a row there"
            current = await self.version_in(connection, active["policy_version"])
            policy, is_broken = decide(current), current.version in self._again_at_s
            if policy.version == current.version and not is_broken:
                return current
            stream_version = active["stream_version"]
            if is_broken:
                await connection.execute(FORGET_SQL, policy.version)
                self._known.pop(current.version, None)
                del self._again_at_s[current.version]
            await _put(connection, policy)
            if policy.version != current.version:
                await append_in(connection, [self._append(policy, stream_version)])
                await connection.execute(PUT_ACTIVE_SQL, policy.version, stream_version + 1)
            return policy

    async def read_again(self) -> None:
        """Read now what could not be read of any version."""
        self._again_at_s = dict.fromkeys(self._again_at_s, 0.0)
        async with acquire(self._pool) as connection:
            for version in list(self._again_at_s):
                await self.version_in(connection, version)

    async def version_in(self, connection: Connection, version: str) -> Policy:
        """A version of the policy; read once, for versions never change.

        What cannot be read of it allows nothing: a purpose is as if undeclared, a jurisdiction as strict as there is.
        """
        if self._again_at_s:
            self._drop_lost(version)
        known = self._known.get(version)
        if known is not None and (not self._again_at_s or time.monotonic() < self._again_at_s.get(version, math.inf)):
            return known
        policy, is_whole = await self._read(connection, version)
        self._known[version] = policy
        self._again_at_s.pop(version, None)
        if not is_whole:
            self._again_at_s[version] = time.monotonic() + AGAIN_S
        set_alarm(Alarm.STORED_UNUSABLE, bool(self._again_at_s))
        while len(self._known) > VERSIONS_MAX:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._again_at_s.pop(oldest, None)
        return policy

    def _drop_lost(self, asked: str) -> None:
        """Forget versions of which there is nothing, once another is asked for: then they are not the active one."""
        for version in self._again_at_s.keys() - {asked}:
            if not (self._known[version].purposes or self._known[version].unread_purposes):
                del self._known[version], self._again_at_s[version]
        set_alarm(Alarm.STORED_UNUSABLE, bool(self._again_at_s))

    async def _read(self, connection: Connection, version: str) -> tuple[Policy, bool]:
        """The version as far as it can be read, and whether that is all of it."""
        of_terms, of_notices, of_places = self.rows
        told = await connection.fetch(TERMS_SQL, version)
        rules = {
            row["purpose"]: (row, rule)
            for row, rule in await of_terms.read(told, _rule_of, again=_of(version, of_terms))
        }
        unruled = {row["purpose"] for row in told}.difference(rules)
        declared = await connection.fetch(PURPOSES_SQL, version)
        all_purposes = {row["purpose"]: _purpose(row, *rules.get(row["purpose"], (None, None))) for row in declared}
        purposes = {name: one for name, one in all_purposes.items() if name not in unruled}
        noted = await connection.fetch(NOTICES_SQL, version)
        notices = {
            notice.version: notice
            for _, notice in await of_notices.read(noted, _notice_of, again=_of(version, of_notices))
        }
        placed = await connection.fetch(JURISDICTIONS_SQL, version)
        places = {
            row["jurisdiction"]: place
            for row, place in await of_places.read(placed, _place_of, again=_of(version, of_places))
        }
        unplaced = [row["jurisdiction"] for row in placed if row["jurisdiction"] not in places]
        places |= {name: _strictest(name, purposes) for name in unplaced}
        policy = Policy(
            version,
            MappingProxyType(purposes),
            MappingProxyType(notices),
            MappingProxyType(places),
            await connection.fetchval(CONTROLLER_SQL, version) or self._controller,
            MappingProxyType({name: all_purposes[name] for name in unruled & all_purposes.keys()}),
            frozenset(row["notice_version"] for row in noted).difference(notices),
        )
        return policy, bool(declared) and not unruled and len(notices) == len(noted) and not unplaced

    def _append(self, policy: Policy, stream_version: int) -> Append:
        now = self._clock.now()
        event_type, payload = wire.encode_policy(policy)
        return Append(STREAM, stream_version, (NewEvent(uuid7(now), event_type, payload, now, "", traceparent()),))


async def _put(connection: Connection, policy: Policy) -> None:
    ordered = sorted(policy.purposes.values(), key=lambda one: one.id)
    await connection.execute(
        PUT_PURPOSES_SQL,
        policy.version,
        [one.id for one in ordered],
        [one.description for one in ordered],
        [one.legal_basis for one in ordered],
        [one.owner for one in ordered],
        [one.retention_days for one in ordered],
        [one.version for one in ordered],
    )
    told = [one for one in ordered if one.personalizes or one.signals is not None]
    await connection.execute(
        PUT_TERMS_SQL,
        policy.version,
        [one.id for one in told],
        [one.personalizes for one in told],
        [None if one.signals is None else wire.encode_rule(one.signals) for one in told],
    )
    await connection.execute(PUT_CONTROLLER_SQL, policy.version, policy.controller)
    notices, places = policy.notices, policy.jurisdictions
    await connection.execute(
        PUT_NOTICES_SQL, policy.version, list(notices), [wire.encode_notice(one) for one in notices.values()]
    )
    await connection.execute(
        PUT_JURISDICTIONS_SQL, policy.version, list(places), [wire.encode_jurisdiction(one) for one in places.values()]
    )


def _purpose(row: asyncpg.Record, terms: asyncpg.Record | None, rule: PurposeRule | None) -> Purpose:
    """*terms* is None where the purpose declares nothing beyond its row."""
    return Purpose(
        id=row["purpose"],
        description=row["description"],
        legal_basis=row["legal_basis"],
        owner=row["owner"],
        retention_days=row["retention_days"],
        version=row["version"],
        personalizes=terms is not None and terms["personalizes"],
        signals=rule,
    )


def _of(version: str, rows: Rows) -> list[tuple[str, ...]]:
    return [key for key in rows.unread if key[0] == version]


def _rule_of(row: asyncpg.Record) -> PurposeRule | None:
    return None if row["signals"] is None else wire.decode_rule(row["signals"])


def _notice_of(row: asyncpg.Record) -> Notice:
    notice = wire.decode_notice(row["notice"])
    return _named(notice, notice.version, row["notice_version"])


def _place_of(row: asyncpg.Record) -> Jurisdiction:
    place = wire.decode_jurisdiction(row["declared"])
    return _named(place, place.id, row["jurisdiction"])


def _named(read: T, name: str, stored_as: str) -> T:
    if name != stored_as:
        raise ServiceError(Kind.INTERNAL, "ROW_OF_OTHER_NAME", "the row holds another thing than it is named after")
    return read


def _strictest(name: str, purposes: Iterable[str]) -> Jurisdiction:
    """What a place is that cannot be read: nothing is allowed unasked there, and Sec-GPC objects to everything."""
    return Jurisdiction(name, Regime.OPT_IN, gpc_objects_to=tuple(sorted(purposes)))
