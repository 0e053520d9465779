"""What a stack takes of the machine: memory by process, disk by store, disk a decision, and how fast it grows."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import asyncpg
import psutil

from cli.stack.processes import Process
from cli.stack.state import DataDir, State
from cli.stack.status import iso

T = TypeVar("T")
Asked: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FILE = "figures.json"
# Growth is told over no less: seconds say nothing of a rate.
BASELINE_S_MIN = 60.0
# As st_blocks counts, on every system.
BLOCK_BYTES = 512
LOOK_TIMEOUT_S = 3.0
COUNT_TIMEOUT_S = 1.5

# Where there are too many to be counted in time, nearly all events of decision are decisions.
SIZES_SQL = """
SELECT pg_total_relation_size('events') AS bytes, greatest(reltuples, 0)::bigint AS estimate
FROM pg_class WHERE oid = 'events'::regclass
"""
COUNT_SQL = "SELECT count(*) FROM events WHERE type = $1 AND version = 1"
DATABASE_SQL = "SELECT pg_database_size(current_database())"
DECISION = "comity.decision.v1.DecisionMade"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a stack takes now.

    Args:
        memory_bytes: by process; what several share counts for each in part, where the system says so (Linux).
        disk_bytes: by store: postgres, nats, valkey, logs, traces, journal. Of a Postgres that somebody else runs, its
            databases, and nothing where one does not answer; other servers that somebody else runs are left out.
        decision_log_bytes: of the log of decision in Postgres, with its indexes.
        decisions_count: of those in it.
        growth_bytes_per_minute: of all that is on disk, since *since*; None: nothing was measured a while ago, or
            not all of it can be measured now.
        since: UTC, ISO 8601; empty: nothing was.
    """

    memory_bytes: Mapping[str, int]
    disk_bytes: Mapping[str, int]
    decision_log_bytes: int | None = None
    decisions_count: int | None = None
    growth_bytes_per_minute: float | None = None
    since: str = ""

    @property
    def decision_bytes(self) -> float | None:
        """Disk of one decision in the log; None: there are none, or it is not known."""
        if not self.decisions_count or self.decision_log_bytes is None:
            return None
        return self.decision_log_bytes / self.decisions_count


async def measure(data_dir: Path, *, now_s: float) -> Figures:
    """What the stack takes now, and how it has grown since it was measured before, which is kept in its folder."""
    folder = DataDir(data_dir)
    state = folder.read() or State(stack_id="")
    memory = {name: _memory(Process(name, record=record)) for name, record in state.processes.items()}
    disk = await asyncio.to_thread(_disk, folder, state)
    is_whole = True
    if "postgres" in state.external:
        sizes = await asyncio.gather(*(_asked(url, _database_size) for url in state.databases.values()))
        known = [size for size in sizes if size is not None]
        if is_whole := len(known) == len(sizes):
            disk["postgres"] = sum(known)
    log = await _asked(state.databases["decision"], _decision_log) if "decision" in state.databases else None
    log_bytes, count = log or (None, None)
    growth, since_s = growth_since(folder.path / FILE, sum(disk.values()), now_s) if is_whole else (None, None)
    since = "" if since_s is None else iso(since_s)
    return Figures({name: size for name, size in memory.items() if size}, disk, log_bytes, count, growth, since)


def _memory(process: Process) -> int:
    """Bytes of the process and its children; 0 when it does not run."""
    return sum(_memory_of(member) for member in process.family())


def _memory_of(member: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        with suppress(psutil.AccessDenied, AttributeError):
            return int(member.memory_full_info().pss)
        return int(member.memory_info().rss)
    return 0


def _disk(folder: DataDir, state: State) -> dict[str, int]:
    stores = {
        "postgres": folder.postgres(state.stack_id),
        "nats": folder.nats,
        "valkey": folder.valkey,
        "logs": folder.logs,
        "traces": folder.traces,
        "journal": folder.journal(),
    }
    return {name: disk_bytes(path) for name, path in stores.items() if name not in state.external}


def disk_bytes(root: Path) -> int:
    """What the files below take on the disk; those that go meanwhile do not count."""
    return sum(_blocks(Path(parent, name)) for parent, _, names in os.walk(root) for name in names)


def _blocks(file: Path) -> int:
    try:
        return file.lstat().st_blocks * BLOCK_BYTES
    except OSError:
        return 0


async def _asked(url: str, ask: Callable[[Asked], Awaitable[T]]) -> T | None:
    """What the database says; None where it does not answer soon."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            connection = await asyncpg.connect(url)
            try:
                return await ask(connection)
            finally:
                connection.terminate()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return None


async def _database_size(connection: Asked) -> int:
    return int(await connection.fetchval(DATABASE_SQL))


async def _decision_log(connection: Asked) -> tuple[int, int]:
    """Bytes and decisions of decision's log."""
    row = await connection.fetchrow(SIZES_SQL)
    assert row is not None, "the table is there, or the statement fails"
    try:
        count = await connection.fetchval(COUNT_SQL, DECISION, timeout=COUNT_TIMEOUT_S)
    except TimeoutError:
        count = row["estimate"]
    return int(row["bytes"]), int(count)


def growth_since(file: Path, bytes_now: int, now_s: float) -> tuple[float | None, float | None]:
    """Bytes a minute since the last measurement that is not too young, and when that was; None: there is none.

    The file keeps the last two, and this one in the place of the older unless the younger is too young: so somebody who
    looks again and again has something to compare with.
    """
    kept = [one for one in _kept(file) if one[0] <= now_s]
    before = next((one for one in reversed(kept) if now_s - one[0] >= BASELINE_S_MIN), None)
    if not kept or before == kept[-1]:
        with suppress(OSError):  # a full disk, which is what one looks for
            fresh = file.with_name(f".{file.name}.{os.getpid()}")
            fresh.write_text(json.dumps([*kept[-1:], (now_s, bytes_now)]) + "\n")
            fresh.replace(file)
    if before is None:
        return None, None
    return (bytes_now - before[1]) * 60.0 / (now_s - before[0]), before[0]


def _kept(file: Path) -> list[tuple[float, int]]:
    """Seconds since 1970 and bytes of the measurements that are kept, the older first."""
    try:
        return [(float(at_s), int(count)) for at_s, count in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):
        return []
