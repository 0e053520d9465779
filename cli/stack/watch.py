"""The supervisor: starts again what of a stack ends unasked, and stops all of it when it is told to end.

`comity up` leaves it behind (`python -m cli.stack.watch DATA_DIR`), `comity up --foreground` becomes it. What is to run
is what state.json names, and whoever stops something takes its name out, under the folder's lock: so there is nothing
to tell the supervisor, and it goes when it is itself named no longer. It is not tied to anything: where it is killed,
everything else goes on, and `comity status` says that nothing is started again.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from cli.stack.log_files import is_due, turn_over
from cli.stack.processes import Process
from cli.stack.restarts import too_many, wait_s
from cli.stack.state import SUPERVISOR, State
from cli.stack.supervisor import Stack
from services.chassis.errors import ServiceError
from services.chassis.logs import setup_logs

LOOK_EVERY_S = 0.5

_log = structlog.get_logger(__name__)


class Watch:
    """Supervision of one stack by this process, which state.json names as its supervisor.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, stack: Stack, *, clock: Callable[[], float] = time.time) -> None:
        self._stack = stack
        self._clock = clock
        self._refused = ""

    async def run(self) -> None:
        """Start again what ends, until SIGTERM or Ctrl-C, which stop the stack, or until somebody else stopped it."""
        told_to_end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told_to_end.set)
        while not told_to_end.is_set() and self.look():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told_to_end.wait(), LOOK_EVERY_S)
        if told_to_end.is_set() and self._named(self._stack.data_dir.read()):
            await self._stack.stop()
        _reap()

    def look(self) -> bool:
        """Start again what has ended and is due; False when this process is no longer the supervisor."""
        _reap()
        now_s = self._clock()
        try:
            state = self._stack.data_dir.read()
            if state is None or not self._named(state):
                return False
            if is_due(self._stack.data_dir.logs, now_s):
                with self._stack.data_dir.exclusive(patience_s=0.0):
                    turn_over(self._stack.data_dir.logs, now_s)
            due = [name for name in _ended(state) if wait_s(state.restarts.get(name), now_s) == 0.0]
            if due:
                self._tell(self._stack.revive(due, now_s), now_s)
            self._refused = ""
        except (ServiceError, OSError) as error:
            self._tell_refusal(error)
        return True

    def _tell_refusal(self, error: ServiceError | OSError) -> None:
        """Log, once, why it could not look after the stack: a full disk, or a folder that cannot be read.

        That another command is at work there is as it should be.
        """
        reason = error.reason if isinstance(error, ServiceError) else error.strerror or "OSError"
        if reason not in (self._refused, "DATA_DIR_IN_USE"):
            self._refused = reason
            with contextlib.suppress(OSError):  # the log may lie on the disk that is full
                _log.error("not_looked_after", reason=reason)

    def _named(self, state: State | None) -> bool:
        record = state.processes.get(SUPERVISOR) if state else None
        return record is not None and record.pid == os.getpid()

    def _tell(self, revived: list[str], now_s: float) -> None:
        for name in revived:
            done = self._stack.restarts[name]
            if too_many(done, now_s):
                _log.error("ends_again_and_again", name=name, count=done.in_a_row, retry_in_s=wait_s(done, now_s))
            else:
                _log.warning("started_again", name=name, count=done.count)


def _ended(state: State) -> list[str]:
    return [
        name
        for name, record in state.processes.items()
        if name != SUPERVISOR and not Process(name, record=record).alive()
    ]


def _reap() -> None:
    """Take the exit codes of children that have ended, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    """Supervise the stack in the folder that is the only argument."""
    setup_logs(SUPERVISOR, "info")
    asyncio.run(Watch(Stack(Path(sys.argv[1]), tied=False)).run())


if __name__ == "__main__":
    main()
