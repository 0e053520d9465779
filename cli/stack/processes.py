"""Processes that are known by pid and start time, so that a pid used again is never taken for ours."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cli.stack.users import give, launcher
from services.chassis.errors import Kind, ServiceError

POLL_S = 0.02
STOP_SIGNALS = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))
LOG_TAIL_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process as state.json knows it; *started* tells it from a later one with the same pid."""

    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class Command:
    """How a process is started.

    Args:
        uid: user to run as; None for the user who asks.
        reads_all: whether that user may read whatever the one who asks may.
        writes: folders that are to be that user's.
        stop_signals: what to send in turn, each with the seconds to wait before the next.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    uid: int | None = None
    reads_all: bool = False
    writes: tuple[Path, ...] = ()
    stop_signals: tuple[tuple[signal.Signals, float], ...] = STOP_SIGNALS

    def hand_over(self) -> None:
        """Make the folders that it writes its user's."""
        if self.uid is not None:
            for folder in self.writes:
                give(folder, self.uid)


def start_time(pid: int) -> str | None:
    """When the process started, as an opaque string; None when no such process runs.

    Linux counts from boot in ticks, which no change of the clock moves; a zombie counts as gone.
    """
    if sys.platform != "linux":
        return _start_time_elsewhere(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{ticks}"


def _start_time_elsewhere(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


class Process:
    """One process of a stack: started by us, or found in state.json.

    Args:
        record: of a process that was started earlier, if any.
        tied: whether the kernel ends the process when this one dies, however it dies.
    """

    def __init__(self, name: str, *, record: ProcessRecord | None = None, tied: bool = True) -> None:
        self.name = name
        self.record = record
        self._tied = tied
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def spawn(self, command: Command, on_spawn: Callable[[ProcessRecord], None] | None = None) -> None:
        """Start it; *on_spawn* writes its record down before the command begins.

        Must be called on the main thread: the kernel ties a process to the thread that started it.
        """
        death_signal = command.stop_signals[0][0] if self._tied else 0
        before = launcher(command.uid, reads_all=command.reads_all, death_signal=death_signal)
        command.hand_over()
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            self._child = subprocess.Popen(
                [*before, *command.argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(command.env),
                cwd=command.cwd,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops things in order
            )
        self.record = ProcessRecord(self._child.pid, start_time(self._child.pid) or "")
        self._stopped = False
        if on_spawn is not None:
            on_spawn(self.record)
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(b"g")

    @property
    def pid(self) -> int | None:
        """Its pid; None when it was never started."""
        return self.record.pid if self.record else None

    def alive(self) -> bool:
        """Whether it runs, and is the one that was started."""
        if self._child is not None:
            return self._child.poll() is None
        return self.record is not None and start_time(self.record.pid) == self.record.started

    def listens_on(self, port: int) -> bool:
        """Whether it runs and is the one that listens on the port; where that may not be seen, whether it runs."""
        if not self.alive() or self.pid is None:
            return False
        try:
            found = psutil.Process(self.pid).net_connections("tcp")
        except psutil.AccessDenied:
            return self.alive()
        except psutil.NoSuchProcess:
            return False
        return any(one.laddr.port == port for one in found if one.status == psutil.CONN_LISTEN)

    def paused(self) -> bool:
        """Whether somebody stopped it (SIGSTOP), so that it runs and does nothing."""
        return any(member.status() == psutil.STATUS_STOPPED for member in self.family()[:1])

    @property
    def crashed(self) -> bool:
        """Whether it ended without being asked to."""
        return self.record is not None and not self._stopped and not self.alive()

    async def stop(self, signals: Sequence[tuple[signal.Signals, float]]) -> None:
        """Send the signals in turn until it is gone; nothing to do when it is not running."""
        self._stopped = True
        for number, patience_s in signals:
            if not self.alive():
                return
            self.send(number)
            if number != signal.SIGKILL:
                signal_all(self.family(), signal.SIGCONT)  # what is paused takes no signal but SIGKILL
            if await self.wait_gone(patience_s):
                return
        if self.alive():
            raise ServiceError(Kind.UNAVAILABLE, "PROCESS_WILL_NOT_STOP", f"{self.name} (pid {self.pid}) does not stop")

    async def kill(self) -> None:
        """End it and its children at once, as a power cut would, and wait until they are gone."""
        self._stopped = True
        family = self.family()
        signal_all(family, signal.SIGKILL)
        await wait_until(lambda: not self.alive() and not any(_runs(member) for member in family), 10.0)

    def release(self) -> None:
        """No longer be its parent: it goes on when this one ends, and from now on is known by its record alone."""
        if self._child is not None:
            self._child.returncode = 0  # or Popen warns that it still runs, which is the intention
            self._child = None

    def family(self) -> list[psutil.Process]:
        """The process and all its children, the process first; empty when it is not running."""
        if not self.alive() or self.pid is None:
            return []
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to this process only."""
        if self.alive() and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait_gone(self, timeout_s: float) -> bool:
        """Whether it is gone, after waiting for that at most *timeout_s*."""
        return await wait_until(lambda: not self.alive(), timeout_s)


async def wait_until(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Whether *holds* became true, asked again and again for at most *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def signal_all(family: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send the signal to each that is still there, in order."""
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_bytes(log: Path) -> int:
    """How long a log is; 0 when there is none."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def log_tail(log: Path, *, since_bytes: int = 0) -> str:
    """The last lines of a log, for an error message; empty when there is none.

    Args:
        since_bytes: how long the log was before: what earlier runs wrote is not told.
    """
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since_bytes, end - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
