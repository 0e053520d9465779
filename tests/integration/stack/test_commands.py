"""`comity up`, `down`, `status`, `serve`, `trace`: what a person at a shell gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.stack import look
from tests.waiting import eventually

STAND_IN = Path(__file__).with_name("stand_in.py")
# The command line with stand-ins for the services, on data that is thrown away.
COMITY = """
import sys
from cli.stack import postgres, programs
postgres.SETTINGS.update(postgres.DISPOSABLE_SETTINGS)
stand_in = sys.argv.pop(1)
programs.argv = lambda service: (sys.executable, stand_in, service)
from cli.main import main
main()
"""


def comity(*arguments: str, data_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"COMITY_DATA_DIR": str(data_dir)} if data_dir else {})}
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
        assert json.loads(comity("up", "--json", data_dir=data_dir).stdout) == again
    finally:
        down = comity("down", "--json", data_dir=data_dir)
    assert len(json.loads(down.stdout)["stopped"]) == 8
    assert comity("down", data_dir=data_dir).stdout.startswith("nothing ran")
    assert comity("status", data_dir=data_dir).returncode == 1


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
    assert len(json.loads(down.stdout)["stopped"]) == 8
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
