"""Whom models were trained on: kept with the model, searched when somebody is erased."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from services.chassis.postgres import Connection
from services.decision.domain.training_members import FINGERPRINT_BYTES, fingerprint, merged, packed, without

ROWS_SQL = "SELECT first_byte, fingerprints FROM model_members WHERE name = $1 AND sha256 = $2 FOR UPDATE"
PUT_SQL = """
INSERT INTO model_members (name, sha256, first_byte, fingerprints)
SELECT $1, $2, put.first_byte, put.fingerprints
FROM unnest($3::smallint[], $4::bytea[]) AS put (first_byte, fingerprints)
ON CONFLICT (first_byte, name, sha256) DO UPDATE SET fingerprints = excluded.fingerprints
"""
# Erasures and registrations of one model go one after the other by the model's row.
LOCK_MODEL_SQL = "SELECT FROM models WHERE name = $1 AND sha256 = $2 FOR UPDATE"
LOCK_MODELS_SQL = "SELECT FROM models ORDER BY name, sha256 FOR UPDATE"
SEARCH_SQL = """
SELECT name, sha256, first_byte, fingerprints FROM model_members WHERE first_byte = ANY($1::smallint[])
"""
TRIM_SQL = """
UPDATE model_members SET fingerprints = $4 WHERE name = $1 AND sha256 = $2 AND first_byte = $3
"""
MARK_SQL = """
UPDATE models SET erased_subjects_count = erased_subjects_count + $3, retrain_since = coalesce(retrain_since, now())
WHERE name = $1 AND sha256 = $2
"""
# As FOR KEY SHARE does for single members (chassis.erasure): nobody gets on the list until the transaction ends.
HOLD_LIST_SQL = "LOCK TABLE erased_members IN ROW SHARE MODE"
ERASED_SQL = "SELECT member_id FROM erased_members"


async def remember_in(connection: Connection, name: str, sha256: str, fingerprints: Collection[bytes]) -> None:
    """Keep whom a model was trained on, beside those that are kept already.

    Who was erased meanwhile is not kept, and the model is marked for them at once: its data was read before.
    """
    await connection.fetch(LOCK_MODEL_SQL, name, sha256)
    await connection.execute(HOLD_LIST_SQL)
    erased = {fingerprint(row["member_id"]) for row in await connection.fetch(ERASED_SQL)}
    gone = erased.intersection(fingerprints)
    rows = packed(each for each in fingerprints if each not in gone)
    kept = await connection.fetch(ROWS_SQL, name, sha256)
    for row in kept:
        first = row["first_byte"]
        rows[first] = merged(rows.get(first, b""), row["fingerprints"])
    await connection.execute(PUT_SQL, name, sha256, list(rows), list(rows.values()))
    # Where the list was told before, the model was marked for those when they were erased.
    if gone and not kept:
        await connection.execute(MARK_SQL, name, sha256, len(gone))


async def forget_in(connection: Connection, member_ids: Sequence[str]) -> tuple[int, int]:
    """Take a person's members out of every model's list, and mark the models that knew one of them.

    Returns:
        How many models were marked, and how many entries went; none of either when it was done before.
    """
    gone = {fingerprint(member_id) for member_id in member_ids}
    await connection.fetch(LOCK_MODELS_SQL)
    taken: dict[tuple[str, str], int] = defaultdict(int)
    for row in await connection.fetch(SEARCH_SQL, sorted({each[0] for each in gone})):
        left = without(row["fingerprints"], gone)
        if left is not None:
            taken[row["name"], row["sha256"]] += (len(row["fingerprints"]) - len(left)) // FINGERPRINT_BYTES
            await connection.execute(TRIM_SQL, row["name"], row["sha256"], row["first_byte"], left)
    for name, sha256 in sorted(taken):
        # One person, however many members: an erasure is a person's.
        await connection.execute(MARK_SQL, name, sha256, 1)
    return len(taken), sum(taken.values())
