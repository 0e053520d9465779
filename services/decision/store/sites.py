"""Sites, kept for ever by content hash; one of them decides."""

import asyncio

import asyncpg
import structlog

from services.chassis.clock import Clock
from services.chassis.dead_letters import Rows
from services.chassis.errors import Kind, ServiceError
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
# Of sites that decided before, as many are tried where the newest cannot be read.
BEFORE_MAX = 8

LOCK_SQL = "SELECT site_version, site_stream_version FROM standing FOR UPDATE"
INSERT_SQL = """
INSERT INTO sites (site_version, site, feature_set) VALUES ($1, $2, $3)
ON CONFLICT (site_version) DO UPDATE
SET site = excluded.site, feature_set = excluded.feature_set, applied_at = now()
"""
# What is kept of the site that decides: it may be no longer what was applied.
KEPT_SQL = "SELECT site = $2 AND feature_set = $3 FROM sites WHERE site_version = $1"
BEFORE_SQL = "SELECT site_version FROM sites WHERE site_version <> $1 ORDER BY applied_at DESC LIMIT $2"
ACTIVATE_SQL = "UPDATE standing SET site_version = $1, site_stream_version = site_stream_version + 1"
LOAD_SQL = "SELECT site_version, site, feature_set FROM sites WHERE site_version = $1"
SITE_SQL = "SELECT site FROM sites WHERE site_version = $1"


class PostgresSites:
    """handlers.ports.SiteStore."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self.rows = Rows(pool, "decision", "sites", "sites", "site_version")

    async def load(self, site_version: str) -> CompiledSite | None:
        """See handlers.ports.SiteStore."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(LOAD_SQL, site_version)
        found = await self.rows.read([] if row is None else [row], _compiled_of, again=[(site_version,)])
        return await _decidable(found[0][1]) if found else None

    async def read_again(self) -> None:
        """Read what could not be read, whichever site it is of."""
        for (site_version,) in self.rows.unread:
            await self.load(site_version)

    async def before(self, site_version: str) -> list[str]:
        """See handlers.ports.SiteStore."""
        async with acquire(self._pool) as connection:
            return [row["site_version"] for row in await connection.fetch(BEFORE_SQL, site_version, BEFORE_MAX)]

    async def data(self, site_version: str) -> bytes:
        """See handlers.ports.SiteStore."""
        async with acquire(self._pool) as connection:
            return await connection.fetchval(SITE_SQL, site_version) or b""

    async def apply(self, declared: DeclaredSite) -> bool:
        """See handlers.ports.SiteStore."""
        version, now = declared.compiled.site.version, self._clock.now()
        async with transaction(self._pool) as connection:
            current, stream_version = await connection.fetchrow(LOCK_SQL) or ("", 0)
            kept = version, declared.site, declared.feature_set
            if current == version:
                # The same site again mends a row that cannot be read any more.
                if not await connection.fetchval(KEPT_SQL, *kept):
                    await connection.execute(INSERT_SQL, *kept)
                return False
            await connection.execute(INSERT_SQL, *kept)
            await connection.execute(ACTIVATE_SQL, version)
            event = NewEvent(uuid7(now), SITE_APPLIED, site_applied(version, declared.site), now)
            await append_in(connection, [Append(SITE_STREAM, stream_version, (event,))])
        return True


def _compiled_of(row: asyncpg.Record) -> CompiledSite:
    compiled = compiled_from_bytes(row["site"], row["feature_set"])
    # Bytes that were cut may be another site, and no decision could be replayed by it.
    if compiled.site.version != row["site_version"]:
        raise ServiceError(Kind.INTERNAL, "SITE_OF_OTHER_CONTENT", "the row is not the site that it is named after")
    return compiled


async def _decidable(compiled: CompiledSite) -> CompiledSite:
    """The site without rules that would hold up the process; where that cannot be told it decides as it is."""
    try:
        return await asyncio.to_thread(without_slow_rules, compiled)
    except ServiceError as error:
        _log.warning("rules not tried", site_version=compiled.site.version, reason=error.reason)
        return compiled
