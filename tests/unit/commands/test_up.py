"""What `comity up` and `comity status` tell of where services listen, and of what is wrong with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.stack.probe import StandingAlarm
from cli.stack.status import Part, Restarted, StackStatus
from cli.up import COLORS, moved, show


def test_a_service_that_is_not_where_backends_look_is_named() -> None:
    """What listens where it always does needs no word; nor does a server, which has no usual port."""
    parts = (
        Part("postgres", "up", "127.0.0.1:20000", pid=1),
        Part("decision", "up", "127.0.0.1:20001", pid=2),
        Part("identity", "up", "127.0.0.1:7071", pid=3),
        Part("feedback", "down", ""),
    )
    (line,) = moved(StackStatus(Path("/there"), parts))
    assert line.startswith("decision is at 127.0.0.1:20001 and not at its usual port 7070")


@pytest.mark.parametrize("as_json", [False, True])
def test_alarm_that_stands_is_shown_with_its_service_and_remedy(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever looks learns where it is, what is so, since when and what to do; a service without one has no line."""
    alarm = StandingAlarm("dead_letters", "Something was put aside.", "Look at it.", "2026-01-02T03:04:05Z")
    parts = (
        Part("decision", "up", "127.0.0.1:7070", pid=1),
        Part("feedback", "up", "127.0.0.1:7074", pid=2, alarms=(alarm,)),
    )
    show(StackStatus(Path("/there"), parts), as_json=as_json)
    shown = capsys.readouterr().out
    if as_json:
        told = {part["name"]: part["alarms"] for part in json.loads(shown)["parts"]}
        assert [one["name"] for one in told["feedback"]] == ["dead_letters"]
        assert told["decision"] == []
    else:
        (line,) = [line for line in shown.splitlines() if "dead_letters" in line]
        assert line.startswith("feedback: dead_letters since 2026-01-02T03:04:05Z: Something was put aside.")
        assert "Look at it." in shown


@pytest.mark.parametrize("state", sorted(COLORS))
@pytest.mark.parametrize("name", ["postgres", "decision", "supervisor"])
def test_status_fails_unless_every_part_answers(
    name: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server, service or supervisor in any state but up or external: exit code 1, and the summary is not `up`."""

    async def looked(folder: Path) -> StackStatus:
        others = (Part("nats", "up", "127.0.0.1:20000", pid=1), Part("identity", "up", "127.0.0.1:7071", pid=2))
        return StackStatus(folder, (*others, Part(name, state, "")))

    monkeypatch.setattr("cli.up.look", looked)
    done = CliRunner().invoke(app, ["status", "--json", f"--data-dir={tmp_path}"])
    works = state in ("up", "external")
    assert (done.exit_code == 0, json.loads(done.stdout)["summary"] == "up") == (works, works)


def test_restarts_are_shown_with_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    """How often, since when, and when last; a stack without any shows no column for them."""
    steady = Part("identity", "up", "127.0.0.1:7071", pid=1)
    show(StackStatus(Path("/there"), (steady,)), as_json=False)
    assert "started again" not in capsys.readouterr().out
    restarted = Restarted(3, "2026-01-02T03:04:05Z", "2026-01-02T04:04:05Z")
    show(StackStatus(Path("/there"), (steady, replace(steady, restarts=restarted))), as_json=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "3 times since 2026-01-02T03:04:05Z, last at 2026-01-02T04:04:05Z" in told
