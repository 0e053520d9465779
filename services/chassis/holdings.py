"""comity.common.v1.HoldingsService: what a service holds about people, described, handed out and erased.

A service says in a `Holdings` what is its own; unpacking, packing, the suppress list and the counts are here. Mount it:

    class OwnHoldings:                                    # store/holdings.py; a chassis.holdings.Holdings
        def describe(self) -> Sequence[Holding]: ...
        def export(self, member_ids) -> AsyncIterator[HeldRecord]: ...
        async def erase(self, step: Step, erasure: Erasure) -> None:
            if step is Step.DELETE:
                # Events, commands, dead letters; then what is its own, counted in the same transaction.
                await delete_from_log(self._pool, erasure)
                async with transaction(self._pool) as connection:
                    count = await connection.fetchval(DELETE_STATES_SQL, list(erasure.member_ids))
                    await count_in(connection, erasure.erasure_id, step, {(POSTGRES, "member_states"): count})

    app.server.add(add_HoldingsServiceServicer_to_server, HoldingsService(pool, own, accesses, forget=sealer.forget))

A step may be taken again at any time, also after it was interrupted halfway: `erase` deletes what is (still) there and
adds to the counts with `count_in`; the answer is the sum. What is not idempotent by nature keeps a row of its own.
Facts about an erasure itself are about nobody (empty subject_id): the log refuses facts about who is on the list.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias

import grpc
from comity.common.v1 import holdings_pb2 as pb
from comity.common.v1 import holdings_pb2_grpc as pb_grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from services.chassis import metrics
from services.chassis.erasure import POSTGRES, Counts, Erasure, Step, count_in, counts_in, suppress_in
from services.chassis.errors import ServiceError, invalid
from services.chassis.events import RecordedEvent
from services.chassis.log_rows import recorded
from services.chassis.ports import AccessLog
from services.chassis.postgres import Pool, acquire, transaction
from services.chassis.reads import carry, operation_of
from services.chassis.tracing import COMITY_ERASURE_STEP, span

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Half of what a call may bring back is far from any limit, and a page is soon there.
PAGE_RECORDS_MAX = 100
PAGE_BYTES_MAX = 512 * 2**10
EXPORT_METHOD = "comity.common.v1.HoldingsService/ExportHoldings"

VALKEY = "valkey"

# Which events are a person's is looked up at once (an id each), what is in them page by page.
EVENT_IDS_SQL = """
SELECT event_id FROM events WHERE subject_id = ANY($1::text[]) AND subject_id <> '' ORDER BY epoch, xid, position
"""
EVENTS_BY_ID_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM events WHERE event_id = ANY($1::uuid[]) ORDER BY epoch, xid, position
"""
LETTERS_SQL = """
SELECT subject_id, source, type, reason, received_at FROM dead_letters
WHERE subject_id = ANY($1::text[]) AND subject_id <> '' ORDER BY id
"""

# Sealer.open_many is one.
Open = Callable[[Sequence[RecordedEvent]], Awaitable[list[bytes | ServiceError]]]
# What a record of the log says beside the message itself.
Tell = Callable[[RecordedEvent, Message], Awaitable[Mapping[str, Any]]]

_STEPS = {
    pb.ERASURE_STEP_SUPPRESS: Step.SUPPRESS,
    pb.ERASURE_STEP_WITHDRAW: Step.WITHDRAW,
    pb.ERASURE_STEP_DESTROY_KEYS: Step.DESTROY_KEYS,
    pb.ERASURE_STEP_DELETE: Step.DELETE,
}


@dataclass(frozen=True, slots=True)
class Holding:
    """One kind of record about people; the fields are those of holdings.proto.

    Args:
        retention_days: 0: until it is erased.
    """

    store: str
    name: str
    content: str
    erasure: str
    sealed: bool = False
    purposes: tuple[str, ...] = ()
    retention_days: int = 0
    read_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """One record about a member, opened.

    Args:
        schema: full name of the message that content is the JSON form of, or a plain word.
        content: JSON values.
    """

    store: str
    name: str
    schema: str
    member_id: str
    occurred_at: datetime | None = None
    content: Mapping[str, Any] = field(default_factory=dict)


class Holdings(Protocol):
    """What a service keeps about people."""

    def describe(self) -> Sequence[Holding]:
        """Its record of processing."""
        ...

    def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        """Everything about these members, opened.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...

    async def erase(self, step: Step, erasure: Erasure) -> None:
        """Take a step, and count (chassis.erasure.count_in) what it took away; a step that concerns it not is nothing.

        SUPPRESS has been done already when it comes here.

        Raises:
            ServiceError: UNAVAILABLE; the step is taken again later.
        """
        ...


class HoldingsService(pb_grpc.HoldingsServiceServicer):
    """HoldingsService over a service's own Holdings.

    Args:
        pool: of the service's database.
        accesses: where exports are recorded; None within a service that has recorded them itself.
        forget: drops keys held in memory (Sealer.forget); None where a service holds none.
    """

    def __init__(
        self,
        pool: Pool,
        holdings: Holdings,
        accesses: AccessLog | None,
        *,
        forget: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        self._holdings = holdings
        self._accesses = accesses
        self._erase = Eraser(pool, holdings, forget=forget)

    @property
    def erase(self) -> "Eraser":
        """Takes steps; for chassis.erasure_gate."""
        return self._erase

    async def DescribeHoldings(  # noqa: N802
        self, request: pb.DescribeHoldingsRequest, context: Context
    ) -> pb.DescribeHoldingsResponse:
        """The record of processing."""
        return pb.DescribeHoldingsResponse(holdings=map(_holding_to_pb, self._holdings.describe()))

    async def ExportHoldings(  # noqa: N802
        self, request: pb.ExportHoldingsRequest, context: Context
    ) -> AsyncIterator[pb.ExportHoldingsResponse]:
        """Everything held, page by page; that it is given out has been recorded before, unless nothing is held."""
        page, size = pb.ExportHoldingsResponse(), 0
        operation, is_recorded = carry(operation_of(request.operation)), False
        with span("holdings.export"):
            async for record in self._holdings.export(tuple(dict.fromkeys(request.member_ids))):
                if self._accesses is not None and not is_recorded:
                    # About those who are asked for: a record may name nobody, and is somebody's all the same.
                    await self._accesses.operated(operation, EXPORT_METHOD, member_ids=request.member_ids)
                is_recorded = True
                packed = _record_to_pb(record)
                size += packed.ByteSize()
                if page.records and (size > PAGE_BYTES_MAX or len(page.records) == PAGE_RECORDS_MAX):
                    yield page
                    page, size = pb.ExportHoldingsResponse(), packed.ByteSize()
                page.records.append(packed)
            if page.records:
                yield page

    async def EraseHoldings(  # noqa: N802
        self, request: pb.EraseHoldingsRequest, context: Context
    ) -> pb.EraseHoldingsResponse:
        """One step, and what it took away in all."""
        step = _STEPS.get(request.step)
        if step is None:
            raise invalid("step", "no such step; give one of SUPPRESS, WITHDRAW, DESTROY_KEYS, DELETE")
        counts = await self._erase(step, Erasure(request.erasure_id, tuple(sorted(set(request.member_ids)))))
        return pb.EraseHoldingsResponse(
            counts=[pb.ErasedCount(store=store, name=name, count=count) for (store, name), count in counts.items()]
        )


class Eraser:
    """Takes steps of an erasure in one service: as asked over gRPC, or from consent's ledger at start."""

    def __init__(
        self, pool: Pool, holdings: Holdings, *, forget: Callable[[Iterable[str]], None] | None = None
    ) -> None:
        self._pool = pool
        self._holdings = holdings
        self._forget = forget

    async def __call__(self, step: Step, erasure: Erasure) -> Counts:
        """Take a step; what it took away in all, this time and before.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        with span("holdings.erase", {COMITY_ERASURE_STEP: step.value}):
            if step is Step.SUPPRESS:
                await self._suppress(erasure)
            await self._holdings.erase(step, erasure)
            if self._forget is not None:
                # Also keys that were read meanwhile: what is sealed with them from now on would be refused anyway.
                self._forget(erasure.member_ids)
            async with acquire(self._pool) as connection:
                counts = await counts_in(connection, erasure.erasure_id, step)
        metrics.ERASURE_STEPS.labels(step.value).inc()
        return counts

    async def _suppress(self, erasure: Erasure) -> None:
        """The members on the list, counted once each."""
        async with transaction(self._pool) as connection:
            added = await suppress_in(connection, erasure.erasure_id, erasure.member_ids)
            await count_in(connection, erasure.erasure_id, Step.SUPPRESS, {(POSTGRES, "erased_members"): added})


async def events_of(pool: Pool, member_ids: Sequence[str]) -> AsyncIterator[list[RecordedEvent]]:
    """The log's events about these members in its order, a page at a time."""
    async with acquire(pool) as connection:
        ids = [row["event_id"] for row in await connection.fetch(EVENT_IDS_SQL, list(member_ids))]
    for start in range(0, len(ids), PAGE_RECORDS_MAX):
        async with acquire(pool) as connection:
            rows = await connection.fetch(EVENTS_BY_ID_SQL, ids[start : start + PAGE_RECORDS_MAX])
        yield [recorded(row) for row in rows]


async def log_records(
    pool: Pool, open_many: Open, member_ids: Sequence[str], *, tell: Tell | None = None
) -> AsyncIterator[HeldRecord]:
    """Everything in the log and among the dead letters about these members, for Holdings.export.

    Args:
        tell: what to add to a record's content.
    """
    async for page in events_of(pool, member_ids):
        for event, plain in zip(page, await open_many(page), strict=True):
            content = {"event_id": event.event_id, **await _content_of(event, plain, tell)}
            yield HeldRecord(POSTGRES, "events", event.type, event.subject_id, event.occurred_at, content)
    async for letter in letter_records(pool, member_ids):
        yield letter


async def letter_records(pool: Pool, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
    """The dead letters about these members, for Holdings.export."""
    async with acquire(pool) as connection:
        letters = await connection.fetch(LETTERS_SQL, list(member_ids))
    for row in letters:
        content = {name: row[name] for name in ("source", "type", "reason")}
        yield HeldRecord(POSTGRES, "dead_letters", "dead letter", row["subject_id"], row["received_at"], content)


async def _content_of(event: RecordedEvent, plain: bytes | ServiceError, tell: Tell | None) -> dict[str, Any]:
    """What an event says; of one that cannot be read that it cannot, and the others are handed out all the same."""
    if isinstance(plain, ServiceError):
        return {"unreadable": plain.reason}
    try:
        message = _message_of(event.type, plain)
        if message is None:
            return {"unreadable": "UNDECODABLE"}
        return {**to_json(message), **({} if tell is None else await tell(event, message))}
    except ServiceError as outage:
        if outage.passes:
            raise
        return {"unreadable": outage.reason}
    except Exception:  # whatever a row may hold: a time out of range, a value that no newer code writes
        return {"unreadable": "UNREADABLE"}


def log_holdings(
    content: str, *, sealed: bool, purposes: tuple[str, ...], retention_days: int = 0, read_by: tuple[str, ...] = ()
) -> list[Holding]:
    """What every service with a log holds, for Holdings.describe; *content* says what its events tell about people."""
    gone = "deleted with the commands of its streams"
    return [
        Holding(POSTGRES, "events", content, gone, sealed, purposes, retention_days, read_by),
        Holding("nats", "ev.v1.*", f"{content}, on their way", "expires after 7 days, sealed", sealed, purposes, 7),
        Holding(POSTGRES, "inbox", "ids of events taken in; no member", "kept: it names nobody", retention_days=14),
        Holding(POSTGRES, "dead_letters", "events that could not be taken in, as they came", "deleted", sealed),
        Holding(POSTGRES, "erased_members", "that the member was erased", "kept: it is what keeps the rest away"),
        Holding(
            "files", "traces, logs", "ids of decisions and calls; no member", "expires after 14 days", False, (), 14
        ),
    ]


def _message_of(type_name: str, payload: bytes) -> Message | None:
    """The payload as the message that its type names; None where it is none that is known here."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(type_name)
        return message_factory.GetMessageClass(descriptor).FromString(payload)
    except (KeyError, DecodeError):
        return None


def to_json(message: Any) -> dict[str, Any]:
    """A message as HeldRecord.content: fields named as in the protos, bytes as base64, 64-bit integers as text."""
    content: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return content


def _holding_to_pb(holding: Holding) -> pb.Holding:
    return pb.Holding(
        store=holding.store,
        name=holding.name,
        content=holding.content,
        sealed=holding.sealed,
        purposes=holding.purposes,
        retention_days=holding.retention_days,
        read_by=holding.read_by,
        erasure=holding.erasure,
    )


def _record_to_pb(record: HeldRecord) -> pb.HeldRecord:
    packed = pb.HeldRecord(store=record.store, name=record.name, schema=record.schema, member_id=record.member_id)
    if record.occurred_at is not None:
        packed.occurred_at.FromDatetime(record.occurred_at)
    packed.content.update(dict(record.content))
    return packed
