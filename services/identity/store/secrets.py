"""Refuses to run with other secrets than those the data was made with.

With another pepper every person would silently be somebody else, and with another KEK nothing sealed would open.
"""

import hashlib
import hmac
from collections.abc import Mapping

from services.chassis.errors import Kind, ServiceError
from services.chassis.postgres import Pool, transaction

# The first process notes its secrets' fingerprints; whoever comes later reads them.
NOTE_SQL = """
INSERT INTO secret_fingerprints (name, fingerprint) SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT DO NOTHING
"""
FINGERPRINTS_SQL = "SELECT name, fingerprint FROM secret_fingerprints"


async def require_same_secrets(pool: Pool, secrets: Mapping[str, bytes]) -> None:
    """Returns when the secrets are those of the first start, or this is the first.

    Raises:
        ServiceError: FAILED_PRECONDITION (SECRET_CHANGED).
    """
    own = {
        name: hmac.digest(secret, f"fingerprint {name}".encode(), hashlib.sha256) for name, secret in secrets.items()
    }
    async with transaction(pool) as connection:
        await connection.execute(NOTE_SQL, list(own), list(own.values()))
        noted = {row["name"]: row["fingerprint"] for row in await connection.fetch(FINGERPRINTS_SQL)}
    for name, fingerprint in own.items():
        if not hmac.compare_digest(noted[name], fingerprint):
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "SECRET_CHANGED",
                f"the {name} is not the one that this database was made with: restore its file",
            )
