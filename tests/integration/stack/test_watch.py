"""The supervisor: what it starts again and when, in this process and on a clock of its own."""

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.stack import Stack, look, programs
from cli.stack.processes import start_time
from cli.stack.restarts import MANY
from cli.stack.servers import SERVERS
from cli.stack.state import DataDir
from cli.stack.status import Part
from cli.stack.watch import Watch
from tests.waiting import eventually


class Supervised:
    """A stack with one service, left to itself, and its supervisor, which looks when it is told to."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.now_s = time.time()
        self.stack = Stack(data_dir, services=("identity",), tied=False, disposable=True)
        self.watch = Watch(self.stack, clock=lambda: self.now_s)

    def pid(self, name: str) -> int:
        """Of the process that state.json names, dead or alive."""
        state = DataDir(self.data_dir).read()
        assert state is not None
        return state.processes[name].pid

    async def part(self, name: str) -> Part:
        """How status tells it."""
        return next(part for part in (await look(self.data_dir)).parts if part.name == name)

    async def kill(self, name: str) -> None:
        """End it at once, and wait until it is gone."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        await self.gone(pid)

    async def gone(self, pid: int) -> None:
        """Returns when no such process runs."""

        async def is_gone() -> bool:
            return start_time(pid) is None

        await eventually(is_gone)


@pytest.fixture
async def supervised(data_dir: Path) -> AsyncIterator[Supervised]:
    """Up, and supervised by this process."""
    world = Supervised(data_dir)
    await world.stack.start()
    try:
        world.stack.watch_here()
        yield world
    finally:
        await Stack(data_dir, tied=False).stop()


@pytest.mark.parametrize("name", ["identity", *SERVERS])
async def test_killed_process_is_started_again_where_it_was(supervised: Supervised, name: str) -> None:
    """Every service and every server: under its address, at once, and status counts it."""
    before = await supervised.part(name)
    await supervised.kill(name)
    assert (await supervised.part(name)).state == "crashed"

    async def is_up() -> bool:
        supervised.now_s += 1.0
        assert supervised.watch.look()
        return (await supervised.part(name)).works

    await eventually(is_up, within_s=60)
    after = await supervised.part(name)
    assert (after.address, after.pid == before.pid) == (before.address, False)
    assert after.restarts is not None
    assert after.restarts.count >= 1
    others = [part for part in (await look(supervised.data_dir)).parts if part.name != name]
    assert [part.name for part in others if part.restarts] == []


async def test_crash_loop_waits_longer_and_longer_and_is_told(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends whenever it is started is tried some 15 times in ten minutes; status alarms with the log to read."""
    monkeypatch.setattr(programs, "argv", lambda _: (sys.executable, "-c", "raise SystemExit(1)"))
    await supervised.kill("identity")
    started = {supervised.pid("identity")}
    for _ in range(600):
        supervised.watch.look()
        pid = supervised.pid("identity")
        if pid not in started:
            started.add(pid)
            await supervised.gone(pid)
        supervised.now_s += 1.0
    assert MANY < len(started) - 1 <= 16
    found = await look(supervised.data_dir, clock=lambda: supervised.now_s)
    (part,) = [part for part in found.parts if part.name == "identity"]
    assert (part.state, found.summary) == ("crashed", "partly up")
    assert part.restarts is not None
    assert part.restarts.count == len(started) - 1
    (alarm,) = part.alarms
    assert alarm.name == "ends_again_and_again"
    assert "identity.log" in alarm.remedy


async def test_up_leaves_what_runs_to_a_supervisor_in_the_foreground(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with its own settings, and with them would start the services again; what is missing is started."""
    pid = supervised.pid("identity")
    monkeypatch.setenv("COMITY_IDENTITY_LOG_LEVEL", "debug")
    up = Stack(supervised.data_dir, services=("identity", "consent"), tied=False, disposable=True, watched=True)
    await up.start()
    assert (supervised.pid("identity"), up.renewed) == (pid, {})
    assert (await supervised.part("consent")).works
    (note,) = up.notes
    assert note.startswith(f"process {os.getpid()} supervises")
    assert "identity" in note


async def test_what_was_stopped_stays_down(supervised: Supervised) -> None:
    """Down takes the names out of the state: the supervisor starts nothing, and is no longer needed."""
    await Stack(supervised.data_dir, tied=False).stop()
    assert supervised.watch.look() is False
    assert (await look(supervised.data_dir)).summary == "down"


async def test_supervisor_waits_while_another_command_is_at_work(supervised: Supervised) -> None:
    """Whoever holds the folder decides what runs; what is dead after that is started then."""
    await supervised.kill("identity")
    dead = supervised.pid("identity")
    with DataDir(supervised.data_dir).exclusive():
        assert supervised.watch.look()
        assert supervised.pid("identity") == dead
    assert supervised.watch.look()
    assert supervised.pid("identity") != dead


async def test_supervisor_leaves_no_zombie(supervised: Supervised) -> None:
    """Its children are waited for, however often they end."""
    for _ in range(3):
        await supervised.kill("identity")
        supervised.now_s += 60.0
        supervised.watch.look()
    await supervised.kill("identity")
    supervised.watch.look()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
    assert "Z" not in states


async def test_supervisor_goes_on_where_the_state_cannot_be_read(supervised: Supervised) -> None:
    """A damaged state.json stops no supervisor: once it is whole again, what is dead is started."""
    file = supervised.data_dir / "state.json"
    whole = file.read_text()
    await supervised.kill("identity")
    dead = supervised.pid("identity")
    file.write_text("{")
    assert supervised.watch.look()
    file.write_text(whole)
    assert supervised.watch.look()
    assert supervised.pid("identity") != dead
