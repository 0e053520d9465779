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

    app.server.add(add_HoldingsServiceServicer_to_server, HoldingsService(pool, own, forget=sealer.forget))

A step may be taken again at any time, also after it was interrupted halfway: `erase` deletes what is (still) there and
adds to the counts with `count_in`; the answer is the sum. What is not idempotent by nature keeps a row of its own.
Facts about an erasure itself are about nobody (empty subject_id): the log refuses facts about who is on the list.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias

import grpc
from comity.common.v1 import holdings_pb2 as pb
from comity.common.v1 import holdings_pb2_grpc as pb_grpc
from google.protobuf import json_format

from services.chassis import metrics
from services.chassis.erasure import POSTGRES, Counts, Erasure, Step, count_in, counts_in, suppress_in
from services.chassis.errors import invalid
from services.chassis.postgres import Pool, acquire, transaction
from services.chassis.tracing import COMITY_ERASURE_STEP, span

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Half of what a call may bring back is far from any limit, and a page is soon there.
PAGE_RECORDS_MAX = 100
PAGE_BYTES_MAX = 512 * 2**10

VALKEY = "valkey"

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
        forget: drops keys held in memory (Sealer.forget); None where a service holds none.
    """

    def __init__(
        self, pool: Pool, holdings: Holdings, *, forget: Callable[[Iterable[str]], None] | None = None
    ) -> None:
        self._holdings = holdings
        self._erase = Eraser(pool, holdings, forget=forget)

    async def DescribeHoldings(  # noqa: N802
        self, request: pb.DescribeHoldingsRequest, context: Context
    ) -> pb.DescribeHoldingsResponse:
        """The record of processing."""
        return pb.DescribeHoldingsResponse(holdings=map(_holding_to_pb, self._holdings.describe()))

    async def ExportHoldings(  # noqa: N802
        self, request: pb.ExportHoldingsRequest, context: Context
    ) -> AsyncIterator[pb.ExportHoldingsResponse]:
        """Everything held, page by page."""
        page, size = pb.ExportHoldingsResponse(), 0
        with span("holdings.export"):
            async for record in self._holdings.export(tuple(dict.fromkeys(request.member_ids))):
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
