"""Keeps the journal beside the database: a leader writes consent's log into it, and what it has more is put back.

The file lies where a backup of the database does not reach. Revoke and Erase do not wait for it; `lag_s` says how far
it is behind. A database that was restored lacks what was refused since: `catch_up` puts it back, and is called before
consent serves. Grants are in no journal: who agreed again after the backup is refused until they are asked again.

The database says up to which line it was written (journal_position), so an ordinary start reads nothing but the few
lines behind that. Where the file does not hold that line, it is another or an older one: then all of it is compared,
and the log is read from its beginning; what is in the file already is not written twice.
"""

import asyncio
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.dead_letters import IMPOSSIBLE_PLACE, put_aside, read_each
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition
from services.chassis.lag import Lag
from services.chassis.ports import EventStore
from services.chassis.postgres import Connection, Pool, acquire, translated
from services.consent import wire
from services.consent.domain.commands import Person
from services.consent.domain.journal import (
    ERASED,
    Entry,
    JournalBrokenError,
    Mark,
    file_name,
    lines_of,
    lock_name,
    read,
)
from services.consent.metrics import JOURNAL_LAG_S
from services.consent.store.erasures import PostgresErasures
from services.consent.store.ledger import PostgresLedger

PAGE_MAX = 500
BATCH_MAX = 1_000
POLL_S = 0.2
# Of the line that a mark is behind: an erasure of 256 members is the longest there is.
LINE_BYTES_MAX = 64 * 1024
LAG_S_MAX = 60.0
LOOK_EVERY_S = 2.0

STANDS_SQL = f"""
SELECT (SELECT epoch FROM log_epoch) AS now_epoch, (SELECT timeline_id FROM pg_control_checkpoint()) AS now_timeline,
       coalesce({IMPOSSIBLE_PLACE}, false) AS impossible,
       p.number, p.mac, p.size_bytes, p.epoch, p.xid, p.position, p.log_epoch, p.timeline
FROM (VALUES (1)) AS always LEFT JOIN journal_position p ON true
"""
WRITTEN_SQL = """
INSERT INTO journal_position (number, mac, size_bytes, epoch, xid, position, log_epoch, timeline)
VALUES ($1, $2, $3, $4, $5, $6, (SELECT epoch FROM log_epoch), (SELECT timeline_id FROM pg_control_checkpoint()))
ON CONFLICT (only_row) DO UPDATE
SET number = excluded.number, mac = excluded.mac, size_bytes = excluded.size_bytes, epoch = excluded.epoch,
    xid = excluded.xid, position = excluded.position, log_epoch = excluded.log_epoch, timeline = excluded.timeline
"""
MISSING_SQL = """
SELECT id::text FROM unnest($1::uuid[]) AS id WHERE NOT EXISTS (SELECT FROM events e WHERE e.event_id = id)
"""
LAG_SQL = """
SELECT coalesce(p.number, 0) AS number, (
    SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::float8 FROM events e
    WHERE (e.epoch, e.xid, e.position) > (coalesce(p.epoch, 0), coalesce(p.xid, '0'::xid8), coalesce(p.position, 0))
      AND e.type = ANY($1::text[])
    ORDER BY e.epoch, e.xid, e.position LIMIT 1
) AS lag_s
FROM (VALUES (1)) AS always LEFT JOIN journal_position p ON true
"""

_log = structlog.get_logger(__name__)


class JournalFile:
    """The file; every call blocks, and belongs in a thread.

    Args:
        folder: made when missing, readable by its owner only.
        key: of domain.journal.key_of.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.path = folder / file_name(key)
        self._key = key

    def exists(self) -> bool:
        """Whether there is one, with something in it."""
        return self.path.exists() and self.path.stat().st_size > 0

    def holds(self, mark: Mark) -> bool:
        """Whether the line that the mark is behind is there, at its place."""
        if not mark.number and not mark.size_bytes:
            return True
        with suppress(OSError, ValueError, KeyError, TypeError), self.path.open("rb") as file:
            file.seek(max(0, mark.size_bytes - LINE_BYTES_MAX))
            data = file.read(max(0, min(mark.size_bytes, LINE_BYTES_MAX)))
            if not data.endswith(b"\n") or len(data) < min(mark.size_bytes, LINE_BYTES_MAX):
                return False
            line = json.loads(data[:-1].rpartition(b"\n")[2])
            return (line["number"], line["mac"]) == (mark.number, mark.mac)
        return False

    def batches(self, after: Mark) -> Iterator[list[tuple[Entry, Mark]]]:
        """The entries behind a mark, each with the mark behind it; nothing where there is no file.

        Raises:
            JournalBrokenError: once all that is before the broken line was given.
        """
        if not self.exists():
            return
        batch: list[tuple[Entry, Mark]] = []
        with self.path.open("rb") as file:
            file.seek(after.size_bytes)
            try:
                for one in read(self._key, after, file):
                    batch.append(one)
                    if len(batch) == BATCH_MAX:
                        yield batch
                        batch = []
            except JournalBrokenError:
                # An empty batch would pass for the end.
                if batch:
                    yield batch
                raise
        if batch:
            yield batch

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold it, made if missing, against another leader, such as one that lost its lead without noticing.

        Raises:
            OSError: somebody else holds it, or the folder cannot be written to.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path.parent / lock_name(self._key)).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An empty one says that nobody refused anything yet; none at all, that nobody knows.
            self.path.touch(mode=0o600)
            yield

    def append(self, end: Mark, entries: list[Entry]) -> Mark:
        """Write the entries behind *end*, durably; where the file then ends. What a crash left there goes.

        Raises:
            OSError: nothing of it is to be relied on.
        """
        data, mark = lines_of(self._key, end, entries)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < end.size_bytes:
                raise OSError(errno.ESTALE, "it was cut short, or is another")
            os.ftruncate(descriptor, end.size_bytes)
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], end.size_bytes + written)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return mark


@dataclass(slots=True)
class Tail:
    """How far the journal and the log have come together.

    Args:
        end: of the journal.
        cursor: of the log: everything up to there is in the journal.
        known: events behind the cursor that may be in the journal all the same.
    """

    end: Mark
    cursor: LogPosition
    known: set[str]


@dataclass(frozen=True, slots=True)
class _Stands:
    mark: Mark
    restored: bool
    impossible: bool = False


class PostgresJournal:
    """Writes the log into the journal and puts back what the log lacks.

    Args:
        missing_ok: serve also where the database was restored and the journal that it was written into is gone.
        clock_s: seconds from whenever, which only go forward.
    """

    def __init__(
        self,
        pool: Pool,
        log: EventStore,
        file: JournalFile,
        ledger: PostgresLedger,
        erasures: PostgresErasures,
        *,
        missing_ok: bool = False,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._log = log
        self._file = file
        self._ledger = ledger
        self._erasures = erasures
        self._missing_ok = missing_ok
        self._fails = False
        self._clock_s = clock_s
        self._since_s = clock_s()

    async def catch_up(self) -> Tail:
        """Put back everything that is newer in the journal; where to write on.

        Raises:
            ServiceError: FAILED_PRECONDITION (JOURNAL_MISSING, JOURNAL_BROKEN): what was refused since the backup is
                not known; UNAVAILABLE.
        """
        stands = await self._stands()
        if stands.mark.number and not await asyncio.to_thread(self._file.exists):
            self._tell_missing(stands)
        aligned = not stands.impossible and await asyncio.to_thread(self._file.holds, stands.mark)
        end = stands.mark if aligned else Mark()
        tail = Tail(end, stands.mark.position if aligned else ORIGIN, set())
        count = 0
        batches = self._file.batches(end)
        try:
            batch: list[tuple[Entry, Mark]]
            while batch := await asyncio.to_thread(next, batches, []):
                count += await self._put_back([entry for entry, _ in batch])
                tail.known.update(entry.event_id for entry, _ in batch)
                tail.end = batch[-1][1]
        except JournalBrokenError as error:
            set_alarm(Alarm.JOURNAL_BEHIND, stands=True)
            raise _broken(self._file.path, error) from error
        if count:
            _log.warning(
                "refusals and erasures put back from the journal", count=count, where=f"up to line {tail.end.number}"
            )
        return tail

    async def lead(self, connection: Connection) -> None:
        """Write the log into the journal for as long as the lead's connection lasts.

        Raises:
            ServiceError: see catch_up; UNAVAILABLE (JOURNAL_NOT_WRITTEN).
        """
        try:
            with self._file.locked():
                tail = await self.catch_up()
                if not tail.known:
                    # A database that was restored and lacks nothing is no longer one that was restored.
                    await _note(connection, tail)
                while not connection.is_closed():
                    if not await self._write_page(connection, tail):
                        self._fails = False
                        await asyncio.sleep(POLL_S)
        except ServiceError as error:
            self._fails = self._fails or error.kind is Kind.FAILED_PRECONDITION
            raise
        except OSError as error:
            self._fails = True
            raise ServiceError(
                Kind.UNAVAILABLE, "JOURNAL_NOT_WRITTEN", f"{self._file.path}: {error.strerror or type(error).__name__}"
            ) from error

    async def lag_s(self) -> tuple[int, float]:
        """How many lines the journal has, and the seconds that the oldest fact which is not in it waits; 0: none.

        No fact waits for longer than this process runs: a release without a journal leaves old ones behind.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(LAG_SQL, list(wire.JOURNALED_TYPES))
        assert row is not None, "one row, whatever the table holds"
        return row["number"], max(0.0, min(row["lag_s"] or 0.0, self._clock_s() - self._since_s))

    async def watch(self) -> None:
        """Tell the lag for ever, and raise the alarm where it grows; every replica does, whoever leads."""
        lag = Lag(JOURNAL_LAG_S)
        while True:
            with suppress(ServiceError):
                _, lag_s = await self.lag_s()
                lag.found(lag_s)
                set_alarm(Alarm.JOURNAL_BEHIND, stands=self._fails or lag_s > LAG_S_MAX)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _write_page(self, connection: Connection, tail: Tail) -> bool:
        """Write the next page of the log; False where there is none."""
        events = await self._log.read_log(tail.cursor, limit=PAGE_MAX)
        if not events:
            return False
        fresh = [event for event in events if event.event_id not in tail.known]
        found, letters = read_each(
            fresh, [b"" for _ in fresh], lambda event, _: wire.journal_entry(event), "consent", "journal"
        )
        await put_aside(self._pool, letters)
        entries = [entry for _, entry in found if entry is not None]
        if entries:
            tail.end = await asyncio.to_thread(self._file.append, tail.end, entries)
        tail.cursor = events[-1].position
        await _note(connection, tail)
        return True

    async def _put_back(self, entries: list[Entry]) -> int:
        """Record what of it the log lacks, in order; how many those were."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(MISSING_SQL, [entry.event_id for entry in entries])
        missing = {row["id"] for row in rows}
        done = [await self._put_one_back(entry) for entry in entries if entry.event_id in missing]
        return sum(done)

    async def _put_one_back(self, entry: Entry) -> bool:
        if entry.verdict == ERASED:
            person = Person(entry.subject_id, entry.subject_id, entry.member_ids)
            return await self._erasures.put_back(entry.event_id, entry.erasure_id, person, entry.recorded_at)
        return await self._ledger.put_back(entry.event_id, entry.member_ids[0], wire.answer_of_entry(entry))

    async def _stands(self) -> _Stands:
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(STANDS_SQL)
        assert row is not None, "one row, whatever the table holds"
        if row["number"] is None:
            return _Stands(Mark(), restored=False)
        position = LogPosition(row["epoch"], row["xid"], row["position"])
        return _Stands(
            Mark(row["number"], row["mac"], row["size_bytes"], position),
            restored=(row["log_epoch"], row["timeline"]) != (row["now_epoch"], row["now_timeline"]),
            impossible=row["impossible"],
        )

    def _tell_missing(self, stands: _Stands) -> None:
        if stands.restored and not self._missing_ok:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "JOURNAL_MISSING",
                f"the database was restored, and its journal {self._file.path} is gone: who was erased and what was "
                "revoked since the backup is not known. Put the file back, or, to serve all the same, set "
                "COMITY_CONSENT_JOURNAL_MISSING_OK=true for one start",
            )
        _log.warning("the journal is gone and is written anew from the log", where=str(self._file.path))


async def _note(connection: Connection, tail: Tail) -> None:
    """Say in the database how far it is in the journal; over the lead's connection, so that only the leader can."""
    end, at = tail.end, tail.cursor
    with translated():
        await connection.execute(WRITTEN_SQL, end.number, end.mac, end.size_bytes, at.epoch, at.xid, at.position)


def _broken(path: Path, error: JournalBrokenError) -> ServiceError:
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        "JOURNAL_BROKEN",
        f"{path}: {error}; what is before it was applied, what is behind it is not known. Put a copy of the file in "
        "its place, or move it away to have a new one written from the log",
    )
