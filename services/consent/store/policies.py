"""Keeps the policy of the site: every version of it, and which one holds."""

from collections.abc import Callable
from types import MappingProxyType

import asyncpg

from services.chassis.clock import Clock
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.tracing import traceparent
from services.consent import wire
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import Purpose

STREAM = "policy"
# Versions kept in memory. More than one, because a snapshot taken just before a change is still evaluated after it.
VERSIONS_MAX = 4

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
TERMS_SQL = "SELECT purpose, personalizes, signals FROM policy_terms WHERE policy_version = $1"
PUT_TERMS_SQL = """
INSERT INTO policy_terms (policy_version, purpose, personalizes, signals)
SELECT $1, * FROM unnest($2::text[], $3::boolean[], $4::bytea[]) ON CONFLICT DO NOTHING
"""
NOTICES_SQL = "SELECT notice FROM policy_notices WHERE policy_version = $1"
PUT_NOTICES_SQL = """
INSERT INTO policy_notices (policy_version, notice_version, notice)
SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ON CONFLICT DO NOTHING
"""
JURISDICTIONS_SQL = "SELECT declared FROM policy_jurisdictions WHERE policy_version = $1"
PUT_JURISDICTIONS_SQL = """
INSERT INTO policy_jurisdictions (policy_version, jurisdiction, declared)
SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ON CONFLICT DO NOTHING
"""
CONTROLLER_SQL = "SELECT controller FROM policy_controllers WHERE policy_version = $1"
PUT_CONTROLLER_SQL = """
INSERT INTO policy_controllers (policy_version, controller) VALUES ($1, $2) ON CONFLICT DO NOTHING
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
            policy = decide(current)
            if policy.version == current.version:
                return current
            stream_version = active["stream_version"]
            await _put(connection, policy)
            await append_in(connection, [self._append(policy, stream_version)])
            await connection.execute(PUT_ACTIVE_SQL, policy.version, stream_version + 1)
            return policy

    async def version_in(self, connection: Connection, version: str) -> Policy:
        """A version of the policy; read once, for versions never change."""
        known = self._known.get(version)
        if known is not None:
            return known
        policy = await _read(connection, version, self._controller)
        self._known[version] = policy
        while len(self._known) > VERSIONS_MAX:
            del self._known[next(iter(self._known))]
        return policy

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


async def _read(connection: Connection, version: str, controller: str) -> Policy:
    terms = {row["purpose"]: row for row in await connection.fetch(TERMS_SQL, version)}
    purposes = {
        row["purpose"]: _purpose(row, terms.get(row["purpose"]))
        for row in await connection.fetch(PURPOSES_SQL, version)
    }
    notices = [wire.decode_notice(row["notice"]) for row in await connection.fetch(NOTICES_SQL, version)]
    places = [wire.decode_jurisdiction(row["declared"]) for row in await connection.fetch(JURISDICTIONS_SQL, version)]
    return Policy(
        version,
        MappingProxyType(purposes),
        MappingProxyType({one.version: one for one in notices}),
        MappingProxyType({one.id: one for one in places}),
        await connection.fetchval(CONTROLLER_SQL, version) or controller,
    )


def _purpose(row: asyncpg.Record, terms: asyncpg.Record | None) -> Purpose:
    """*terms* is None where the purpose declares nothing beyond its row."""
    signals = None if terms is None else terms["signals"]
    return Purpose(
        id=row["purpose"],
        description=row["description"],
        legal_basis=row["legal_basis"],
        owner=row["owner"],
        retention_days=row["retention_days"],
        version=row["version"],
        personalizes=terms is not None and terms["personalizes"],
        signals=None if signals is None else wire.decode_rule(signals),
    )
