"""Models, kept for ever with their bytes; of each name one may be active."""

import json
from collections.abc import Mapping

from services.chassis.clock import Clock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.decision.domain.release import MODEL_BYTES_MAX, Model, NewModel
from services.decision.store.model_members import remember_in
from services.decision.wire.facts import (
    MODEL_ACTIVATED,
    MODEL_REGISTERED,
    activated_of,
    model_activated,
    model_registered,
)

# Registering and activating a name take turns: its stream has no holes.
LOCK_SQL = "SELECT pg_advisory_xact_lock(hashtext($1))"
STREAM_VERSION_SQL = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = $1"
# One that is known gets the newer signature: by another key, or the first that it has.
INSERT_SQL = """
INSERT INTO models (name, sha256, feature_set_version, columns_count, metrics, onnx, signature, golden)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8)
ON CONFLICT (name, sha256) DO UPDATE SET signature = EXCLUDED.signature
RETURNING xmax = 0 AS is_new
"""
EXISTS_SQL = "SELECT feature_set_version FROM models WHERE name = $1 AND sha256 = $2"
ACTIVE_SQL = "SELECT sha256 FROM active_models WHERE name = $1"
ACTIVATE_SQL = """
INSERT INTO active_models (name, sha256) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256, activated_at = now()
"""
UNSTOP_SQL = "DELETE FROM stopped_models WHERE name = $1 AND sha256 = $2"
STOP_SQL = """
INSERT INTO stopped_models (name, sha256, why) VALUES ($1, $2, $3) ON CONFLICT (name, sha256) DO NOTHING
"""
# A file larger than is ever taken in is not read into memory either.
DATA_SQL = """
SELECT feature_set_version, columns_count, signature, registered_unsigned, golden,
       CASE WHEN octet_length(onnx) <= $3 THEN onnx ELSE '' END AS onnx
FROM models WHERE name = $1 AND sha256 = $2
"""
VERDICT_SQL = "SELECT problem FROM model_verdicts WHERE sha256 = $1 AND columns_count = $2 AND checker = $3"
REMEMBER_VERDICT_SQL = """
INSERT INTO model_verdicts (sha256, columns_count, checker, problem) VALUES ($1, $2, $3, $4)
ON CONFLICT (sha256, columns_count, checker) DO UPDATE SET problem = EXCLUDED.problem, tried_at = now()
"""
LIST_SQL = """
SELECT m.name, m.sha256, m.feature_set_version, m.metrics, m.registered_at, m.erased_subjects_count, m.retrain_since,
       a.sha256 IS NOT NULL AS active, coalesce(s.why, '') AS stopped_why
FROM models m LEFT JOIN active_models a USING (name, sha256) LEFT JOIN stopped_models s USING (name, sha256)
ORDER BY m.registered_at, m.name
"""


# In order, so that the last of a model is the one that stays.
ACTIVATIONS_SQL = """
SELECT stream_id, payload, occurred_at FROM events WHERE stream_id = ANY($1::text[]) AND type = $2
ORDER BY stream_id, version
"""


class PostgresModels:
    """handlers.ports.ModelStore."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def register(self, model: NewModel) -> bool:
        """See handlers.ports.ModelStore."""
        async with transaction(self._pool) as connection:
            stream_version = await self._lock(connection, model.name)
            is_new = await connection.fetchval(
                INSERT_SQL,
                model.name,
                model.sha256,
                model.feature_set_version,
                model.columns_count,
                json.dumps(dict(model.metrics)),
                model.onnx,
                model.signature or None,
                model.golden or None,
            )
            # Also of a model that is known: whoever registered it first may not have said whom it was trained on.
            if model.trained_on:
                await remember_in(connection, model.name, model.sha256, model.trained_on)
            if not is_new:
                return False
            payload = model_registered(model.name, model.sha256, model.feature_set_version, model.columns_count)
            await self._append(connection, model.name, stream_version, MODEL_REGISTERED, payload)
        return True

    async def activate(self, name: str, sha256: str, feature_set_version: str) -> None:
        """See handlers.ports.ModelStore."""
        async with transaction(self._pool) as connection:
            stream_version = await self._lock(connection, name)
            trained_on = await connection.fetchval(EXISTS_SQL, name, sha256)
            if trained_on is None:
                raise ServiceError(
                    Kind.NOT_FOUND, "MODEL_UNKNOWN", "name, sha256: no such model was registered; register it first"
                )
            if trained_on != feature_set_version:
                raise ServiceError(
                    Kind.FAILED_PRECONDITION,
                    "MODEL_OF_OTHER_FEATURES",
                    "sha256: the model reads another feature set than the site's; train one on the site's",
                )
            was_active = await connection.fetchval(ACTIVE_SQL, name) == sha256
            await connection.execute(UNSTOP_SQL, name, sha256)
            # Also of the active one: replicas that do not let it decide look at it again.
            await connection.execute(ACTIVATE_SQL, name, sha256)
            if was_active:
                return
            await self._append(connection, name, stream_version, MODEL_ACTIVATED, model_activated(name, sha256))

    async def all(self) -> list[Model]:
        """See handlers.ports.ModelStore."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(LIST_SQL)
            streams = list({_stream_of(row["name"]) for row in rows})
            facts = await connection.fetch(ACTIVATIONS_SQL, streams, MODEL_ACTIVATED)
        activated_at = {(fact["stream_id"], activated_of(fact["payload"])): fact["occurred_at"] for fact in facts}
        return [
            Model(
                name=row["name"],
                sha256=row["sha256"],
                feature_set_version=row["feature_set_version"],
                registered_at=row["registered_at"],
                active=row["active"],
                metrics=_metrics(row["metrics"]),
                erased_subjects_count=row["erased_subjects_count"],
                retrain_since=row["retrain_since"],
                activated_at=activated_at.get((_stream_of(row["name"]), row["sha256"])),
                stopped_why=row["stopped_why"],
            )
            for row in rows
        ]

    async def data(self, name: str, sha256: str) -> NewModel | None:
        """See handlers.ports.ModelStore."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(DATA_SQL, name, sha256, MODEL_BYTES_MAX)
        if row is None:
            return None
        return NewModel(
            name,
            sha256,
            row["feature_set_version"],
            row["columns_count"],
            row["onnx"],
            signature=row["signature"] or b"",
            registered_unsigned=row["registered_unsigned"],
            golden=row["golden"] or b"",
        )

    async def stop(self, name: str, sha256: str, why: str) -> None:
        """See handlers.ports.ModelStore."""
        async with transaction(self._pool) as connection:
            await connection.execute(STOP_SQL, name, sha256, why)

    async def verdict(self, model: NewModel, checker: str) -> str | None:
        """See handlers.ports.ModelStore."""
        async with acquire(self._pool) as connection:
            problem: str | None = await connection.fetchval(VERDICT_SQL, model.sha256, model.columns_count, checker)
        return problem

    async def remember_verdict(self, model: NewModel, checker: str, problem: str) -> None:
        """See handlers.ports.ModelStore."""
        async with transaction(self._pool) as connection:
            await connection.execute(REMEMBER_VERDICT_SQL, model.sha256, model.columns_count, checker, problem)

    async def _lock(self, connection: Connection, name: str) -> int:
        """Take the name's turn; the version that its stream stands at."""
        stream_id = _stream_of(name)
        await connection.execute(LOCK_SQL, stream_id)
        return int(await connection.fetchval(STREAM_VERSION_SQL, stream_id))

    async def _append(
        self, connection: Connection, name: str, stream_version: int, event_type: str, payload: bytes
    ) -> None:
        now = self._clock.now()
        event = NewEvent(uuid7(now), event_type, payload, now)
        await append_in(connection, [Append(_stream_of(name), stream_version, (event,))])


def _stream_of(name: str) -> str:
    return f"model:{name}"


def _metrics(data: str) -> Mapping[str, float]:
    """What a model scored; figures that cannot be read are left out, so that models can be listed all the same."""
    values = json.loads(data)
    figures = values.items() if isinstance(values, dict) else ()
    return {name: float(value) for name, value in figures if isinstance(value, int | float)}
