"""What decides now, according to the database."""

from services.chassis.postgres import Pool, acquire
from services.decision.domain.release import Standing

STANDING_SQL = """
SELECT site_version, catalog_version,
       ARRAY(SELECT ROW(name, sha256) FROM active_models ORDER BY name) AS active_models,
       ARRAY(SELECT name || '@' || sha256 FROM stopped_models) AS stopped_models,
       greatest(
           (SELECT max(activated_at) FROM active_models), (SELECT max(stopped_at) FROM stopped_models)
       ) AS models_at
FROM standing
"""


class PostgresStanding:
    """handlers.ports.StandingReader."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def standing(self) -> Standing:
        """See handlers.ports.StandingReader."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(STANDING_SQL)
        if row is None:
            return Standing("", 0, frozenset())
        models = frozenset((name, sha256) for name, sha256 in row["active_models"])
        return Standing(
            row["site_version"], row["catalog_version"], models, frozenset(row["stopped_models"]), row["models_at"]
        )
