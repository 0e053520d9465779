"""What `comity up` and `comity status` tell of where services listen, and of what is wrong with them."""

import json
from pathlib import Path

import pytest

from cli.stack.probe import StandingAlarm
from cli.stack.status import Part, StackStatus
from cli.up import moved, show


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
