"""`comity up`, `down`, `status`, `serve`, `trace`: what a person at a shell gets."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.failures import INTERRUPTED
from cli.stack import DataDir, look
from cli.stack.processes import start_time
from cli.stack.state import SUPERVISOR
from cli.stack.users import service_uid
from tests.waiting import eventually

STAND_IN = Path(__file__).with_name("stand_in.py")
# The command line with stand-ins for the services, on data that is thrown away.
COMITY = """
import dataclasses, sys
from cli.stack import postgres, programs
postgres.SETTINGS.update(postgres.DISPOSABLE_SETTINGS)
stand_in = sys.argv.pop(1)
programs.argv = lambda service: (sys.executable, stand_in, service)
again, real = (sys.executable, "-c", sys.orig_argv[2], stand_in, "--watch"), programs.supervisor
programs.supervisor = lambda folder: dataclasses.replace(real(folder), argv=(*again, str(folder.path)))
if sys.argv[1:2] == ["--watch"]:
    sys.argv.pop(1)
    from cli.stack.watch import main
else:
    from cli.main import main
main()
"""


def comity(*arguments: str, data_dir: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, **({"COMITY_DATA_DIR": str(data_dir)} if data_dir else {})}
    command = [sys.executable, "-c", COMITY, str(STAND_IN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_up_status_down(data_dir: Path) -> None:
    """What up starts outlives it, status tells it truly, down stops all of it; up and down can be said twice."""
    try:
        up = json.loads(comity("up", "--json", data_dir=data_dir).stdout)
        assert up["summary"] == "up"
        shown = comity("status", data_dir=data_dir)
        assert shown.returncode == 0
        assert "decision" in shown.stdout
        assert "password" not in shown.stdout
        again = json.loads(comity("status", "--json", data_dir=data_dir).stdout)
        assert [part["pid"] for part in again["parts"]] == [part["pid"] for part in up["parts"]]
        assert [part["name"] for part in up["parts"]][-1] == "supervisor"
        last = json.loads(comity("up", "--json", data_dir=data_dir).stdout)
        assert [again.pop("figures") is None, last.pop("figures") is None] == [False, False]
        assert last == again
    finally:
        down = comity("down", "--json", data_dir=data_dir)
    assert len(json.loads(down.stdout)["stopped"]) == 9
    assert comity("down", data_dir=data_dir).stdout.startswith("nothing ran")
    assert comity("status", data_dir=data_dir).returncode == 1


def test_up_starts_again_what_is_outdated_and_nothing_else(data_dir: Path) -> None:
    """A changed setting reaches its service and whoever starts that again; old code is told by status and replaced."""

    def pids(told: dict[str, Any]) -> dict[str, int]:
        return {part["name"]: part["pid"] for part in told["parts"]}

    try:
        first = json.loads(comity("up", "--json", data_dir=data_dir).stdout)
        salt = {"COMITY_IDENTITY_HOLDOUT_SALT": "other"}
        second = json.loads(comity("up", "--json", data_dir=data_dir, **salt).stdout)
        changed = {name for name, pid in pids(second).items() if pid != pids(first)[name]}
        assert changed == {"identity", "supervisor"}
        assert "identity was started again: COMITY_IDENTITY_HOLDOUT_SALT is set" in second["notes"]
        refused = comity("up", "--foreground", "--json", data_dir=data_dir)
        assert json.loads(refused.stderr)["error"]["reason"] == "SUPERVISED_ALREADY"
        file = data_dir / "started.json"
        started = json.loads(file.read_text())
        started["consent"]["version"] = "0.0.9+old"
        file.write_text(json.dumps(started))
        shown = comity("status", data_dir=data_dir)
        assert shown.returncode == 0
        assert "consent runs 0.0.9+old" in shown.stdout
        third = json.loads(comity("up", "--json", data_dir=data_dir, **salt).stdout)
        assert {name for name, pid in pids(third).items() if pid != pids(second)[name]} == {"consent"}
        assert third["summary"] == "up"
    finally:
        comity("down", data_dir=data_dir)


def kill(pid: int | None) -> None:
    """End the process at once."""
    assert pid, "it does not run; a signal to 0 would end the tests themselves"
    os.kill(pid, signal.SIGKILL)


async def test_supervisor_outlives_up_and_mends(data_dir: Path) -> None:
    """What is killed comes back; the supervisor killed is told by status and mended by up; down leaves nothing."""
    told: dict[str, Any] = {}

    async def is_up() -> bool:
        told.update({part.name: part for part in (await look(data_dir)).parts})
        return all(part.works and part.pid for part in told.values())

    async def is_up_again() -> bool:
        return await is_up() and all(restarts(name) > before[name] for name in killed)

    def restarts(name: str) -> int:
        return told[name].restarts.count if told[name].restarts else 0

    try:
        up = comity("up", data_dir=data_dir)
        assert up.returncode == 0, up.stderr
        await eventually(is_up, within_s=60)
        pids = {name: part.pid for name, part in told.items()}
        killed = ("consent", "valkey")
        before = {name: restarts(name) for name in told}
        for name in killed:
            kill(pids[name])
        await eventually(is_up_again, within_s=60)
        assert [restarts(name) - before[name] for name in killed] == [1, 1]
        assert told["consent"].pid != pids["consent"]
        assert restarts("identity") == before["identity"]
        assert "started again" in comity("status", data_dir=data_dir).stdout
        kill(pids["supervisor"])
        shown = comity("status", data_dir=data_dir)
        assert shown.returncode == 1
        assert "not_supervised" in shown.stdout
        mended = json.loads(comity("up", "--json", data_dir=data_dir).stdout)
        assert mended["summary"] == "up"
        last = mended["parts"][-1]["pid"]
        assert last != pids["supervisor"]
    finally:
        comity("down", data_dir=data_dir)
    assert start_time(last) is None
    assert (await look(data_dir)).summary == "down"
    assert [part.name for part in (await look(data_dir)).parts if part.restarts] == []


@pytest.mark.parametrize(("end", "early"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
async def test_foreground_stays_and_stops_everything_at_its_end(
    data_dir: Path, end: signal.Signals, early: bool
) -> None:
    """`up --foreground` is the supervisor itself: a second one is refused, and its end ends all, however early."""
    environment = {**os.environ, "COMITY_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-c", COMITY, str(STAND_IN), "up", "--foreground"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as staying:
        try:

            async def supervises() -> bool:
                state = DataDir(data_dir).read()
                return state is not None and SUPERVISOR in state.processes

            await eventually(supervises, within_s=60)
            pids = [part.pid for part in (await look(data_dir)).parts if part.pid]
            if not early:
                second = comity("up", "--foreground", "--json", data_dir=data_dir)
                assert json.loads(second.stderr)["error"]["reason"] == "SUPERVISED_ALREADY"
                assert staying.poll() is None
        finally:
            staying.send_signal(end)
            code = staying.wait(60)
    assert code in ((0, INTERRUPTED) if early else (0,))
    assert [pid for pid in pids if start_time(pid) is not None] == []
    assert (await look(data_dir)).summary == "down"


async def test_serve_takes_the_place_of_the_background_service(data_dir: Path) -> None:
    """A service in the foreground is part of the stack under its own pid, and Ctrl-C ends it alone."""
    environment = {**os.environ, "COMITY_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-c", COMITY, str(STAND_IN), "serve", "identity"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as serving:
        try:
            parts = {}

            async def is_up() -> bool:
                parts.update({part.name: part for part in (await look(data_dir)).parts})
                return parts["identity"].state == "up"

            await eventually(is_up, within_s=60)
            assert parts["identity"].pid == serving.pid
            assert psutil.Process(serving.pid).uids().effective == (
                os.geteuid() if service_uid() is None else service_uid()
            )
            assert parts["postgres"].state == "up"
        finally:
            serving.terminate()
            assert serving.wait(20) == 0
            comity("down", data_dir=data_dir)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up", "--bogus"], "--bogus"),
        (["nope"], "nope"),
        (["serve"], "SERVICE"),
        (["serve", "nope"], "identity, consent, features, decision, feedback"),
        (["trace"], "comity trace --help"),
        (["service"], "comity service --help"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list[str], says: str) -> None:
    """Exit code 2, one line that says what is wrong, nothing on standard output."""
    done = comity(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_down_needs_no_secret(data_dir: Path) -> None:
    """Who lost the secrets can still stop what runs; up says what is gone instead of making up another."""
    comity("up", data_dir=data_dir)
    for secret in (data_dir / "secrets").iterdir():
        secret.unlink()
    down = comity("down", "--json", data_dir=data_dir)
    assert len(json.loads(down.stdout)["stopped"]) == 9
    assert comity("status", "--json", data_dir=data_dir).stdout.count('"down"') == 8 + 1
    up = comity("up", "--json", data_dir=data_dir)
    assert json.loads(up.stderr)["error"]["reason"] == "SECRET_MISSING"


def test_wrong_arguments_are_an_object_for_programs() -> None:
    """With --json a program reads JSON also where its arguments are wrong."""
    done = comity("up", "--bogus", "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["reason"] == "WRONG_ARGUMENTS"


@pytest.mark.parametrize("command", ["up", "down", "status", "models"])
def test_a_data_dir_that_cannot_be_one_is_named(command: str, tmp_path: Path) -> None:
    """A file in the place of the folder ends in one line that names it, not in a traceback."""
    file = tmp_path / "file"
    file.touch()
    done = comity(command, data_dir=file)
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_status_and_doctor_of_a_folder_where_nothing_was_started_tell_that(tmp_path: Path) -> None:
    """Both are what somebody types first, before there is a folder."""
    shown = comity("status", data_dir=tmp_path / "none")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert f"down: {tmp_path / 'none'}" in shown.stdout
    assert "start it with `comity up`" in comity("doctor", data_dir=tmp_path / "none").stdout


def test_a_refusal_ends_in_one_line_with_the_remedy(data_dir: Path) -> None:
    """Exit code 1; with --json the error is an object that programs can match on."""
    done = comity("trace", "show", "unknown", data_dir=data_dir)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    error = json.loads(comity("trace", "show", "unknown", "--json", data_dir=data_dir).stderr)["error"]
    assert error["reason"] == "TRACE_NOT_FOUND"


def test_help_is_there_for_everything() -> None:
    """`comity` alone and --help print the commands and exit with 0."""
    for arguments in ([], ["--help"], ["up", "--help"], ["trace", "show", "--help"]):
        done = comity(*arguments)
        assert done.returncode == 0
        assert "Usage" in done.stdout
