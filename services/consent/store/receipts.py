"""What receipts are made of, read from the ledger; and the key they are signed with."""

from collections.abc import Mapping, Sequence

from services.chassis.eventstore import recorded
from services.chassis.postgres import Connection, Pool, acquire
from services.chassis.signing import signing_key
from services.consent import wire
from services.consent.domain.receipts import UNNAMED_CONTROLLER, RecordedAnswer, Signed, Terms, key_id_of
from services.consent.store.policies import PostgresPolicies

# The events of the transaction that made the ledger this version; 0: that wrote the newest event of any member.
CHANGE_SQL = """
WITH named AS (
    SELECT e.stream_id, e.epoch, e.xid
    FROM unnest($1::text[]) WITH ORDINALITY AS m (stream_id, place) JOIN events e USING (stream_id)
    WHERE $2 = 0 OR e.version = $2
    ORDER BY CASE WHEN $2 = 0 THEN 0 ELSE m.place END, e.epoch DESC, e.xid DESC, e.version DESC LIMIT 1
)
SELECT e.epoch, e.xid, e.position, e.event_id, e.stream_id, e.version, e.type, e.subject_id, e.occurred_at, e.key_id,
       e.nonce, e.payload, e.traceparent
FROM events e JOIN named n ON e.stream_id = n.stream_id AND e.epoch = n.epoch AND e.xid = n.xid
ORDER BY e.version
"""
# The purposes that held when it was written: a receipt is the same whenever it is asked for.
POLICY_THEN_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at, key_id, nonce, payload,
       traceparent
FROM events WHERE stream_id = 'policy' AND occurred_at <= $1 ORDER BY version DESC LIMIT 1
"""


class PostgresReceipts:
    """handlers.privacy_ports.Receipts."""

    def __init__(self, pool: Pool, policies: PostgresPolicies) -> None:
        self._pool = pool
        self._policies = policies

    async def change(self, member_ids: Sequence[str], consent_version: int) -> tuple[str, list[RecordedAnswer]] | None:
        """See handlers.privacy_ports.Receipts."""
        async with acquire(self._pool) as connection:
            streams = [f"consent-{member_id}" for member_id in member_ids]
            rows = await connection.fetch(CHANGE_SQL, streams, consent_version)
        if not rows:
            return None
        answers = [RecordedAnswer(str(row["event_id"]), wire.decode_answer(recorded(row))) for row in rows]
        return rows[0]["subject_id"], answers

    async def controller(self) -> str:
        """See handlers.privacy_ports.Receipts."""
        return (await self._policies.policy()).controller or UNNAMED_CONTROLLER

    async def terms(self, answers: Sequence[RecordedAnswer]) -> tuple[str, str, Mapping[str, Terms]]:
        """See handlers.privacy_ports.Receipts."""
        async with acquire(self._pool) as connection:
            version = await self._version(connection, answers)
            policy = await self._policies.version_in(connection, version)
        terms = {
            one.id: Terms(one.description, one.version, one.legal_basis, one.owner, one.retention_days)
            for one in policy.purposes.values()
        }
        return policy.controller or UNNAMED_CONTROLLER, version, terms

    async def _version(self, connection: Connection, answers: Sequence[RecordedAnswer]) -> str:
        for one in answers:
            # One that was put back from the journal names no version.
            if one.answer.collection is not None and one.answer.collection.policy_version:
                return one.answer.collection.policy_version
        row = await connection.fetchrow(POLICY_THEN_SQL, answers[-1].answer.recorded_at)
        return wire.decode_policy_version(recorded(row)) if row is not None else ""


class Ed25519Signer:
    """handlers.privacy_ports.Signer.

    Args:
        secret: at least 32 random bytes; another one is another signature, and old receipts name the old key.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = signing_key("receipts", secret)
        self._public = self._key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> bytes:
        """See handlers.privacy_ports.Signer."""
        return self._public

    def sign(self, receipt: bytes) -> Signed:
        """See handlers.privacy_ports.Signer."""
        return Signed(receipt, self._key.sign(receipt), key_id_of(self._public), self._public)
