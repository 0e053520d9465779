"""Sites, kept for ever by content hash; one of them decides."""

import asyncio

import structlog

from services.chassis.clock import Clock
from services.chassis.dead_letters import put_aside, read_rows
from services.chassis.errors import ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Pool, acquire, transaction
from services.decision.domain.plan import CompiledSite
from services.decision.domain.release import DeclaredSite
from services.decision.rule_trial import without_slow_rules
from services.decision.wire.facts import SITE_APPLIED, site_applied
from services.decision.wire.site import compiled_from_bytes

_log = structlog.get_logger(__name__)

SITE_STREAM = "site"

LOCK_SQL = "SELECT site_version, site_stream_version FROM standing FOR UPDATE"
INSERT_SQL = """
INSERT INTO sites (site_version, site, feature_set) VALUES ($1, $2, $3) ON CONFLICT (site_version) DO NOTHING
"""
ACTIVATE_SQL = "UPDATE standing SET site_version = $1, site_stream_version = site_stream_version + 1"
LOAD_SQL = "SELECT site_version, site, feature_set FROM sites WHERE site_version = $1"
SITE_SQL = "SELECT site FROM sites WHERE site_version = $1"


class PostgresSites:
    """handlers.ports.SiteStore."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def load(self, site_version: str) -> CompiledSite | None:
        """See handlers.ports.SiteStore."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(LOAD_SQL, site_version)
        found, letters = read_rows(
            [] if row is None else [row],
            lambda row: compiled_from_bytes(row["site"], row["feature_set"]),
            "decision",
            "sites",
            "sites",
            "site_version",
        )
        await put_aside(self._pool, letters)
        return await _decidable(found[0][1]) if found else None

    async def data(self, site_version: str) -> bytes:
        """See handlers.ports.SiteStore."""
        async with acquire(self._pool) as connection:
            return await connection.fetchval(SITE_SQL, site_version) or b""

    async def apply(self, declared: DeclaredSite) -> bool:
        """See handlers.ports.SiteStore."""
        version, now = declared.compiled.site.version, self._clock.now()
        async with transaction(self._pool) as connection:
            current, stream_version = await connection.fetchrow(LOCK_SQL) or ("", 0)
            if current == version:
                return False
            await connection.execute(INSERT_SQL, version, declared.site, declared.feature_set)
            await connection.execute(ACTIVATE_SQL, version)
            event = NewEvent(uuid7(now), SITE_APPLIED, site_applied(version, declared.site), now)
            await append_in(connection, [Append(SITE_STREAM, stream_version, (event,))])
        return True


async def _decidable(compiled: CompiledSite) -> CompiledSite:
    """The site without rules that would hold up the process; where that cannot be told it decides as it is."""
    try:
        return await asyncio.to_thread(without_slow_rules, compiled)
    except ServiceError as error:
        _log.warning("rules not tried", site_version=compiled.site.version, reason=error.reason)
        return compiled
