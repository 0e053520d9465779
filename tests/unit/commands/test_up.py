"""What `comity up` and `comity status` tell of where services listen, and of what is wrong with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.commands_doctor import WRONG
from cli.main import app
from cli.stack.figures import Figures
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


def test_doctor_has_a_remedy_for_every_state_that_does_not_work() -> None:
    """One that it does not know would end it, when it is needed."""
    assert WRONG.keys() == {state for state in COLORS if not Part("nats", state, "").works}


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


FIGURES = Figures(
    memory_bytes={"postgres": 90_000_000, "decision": 130_000_000},
    disk_bytes={"postgres": 250_000_000, "logs": 0},
    decision_log_bytes=1_500_000,
    decisions_count=100,
    growth_bytes_per_minute=133_000.0,
    since="2026-01-02T03:04:05Z",
)


def test_what_a_stack_takes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory and disk with what they are made of, a decision, growth with since when; in bytes for programs."""
    found = StackStatus(Path("/there"), (Part("decision", "up", "127.0.0.1:7070", pid=1),))
    show(found, as_json=False, figures=FIGURES)
    told = capsys.readouterr().out
    assert "memory: 220.0 MB (postgres 90.0 MB, decision 130.0 MB)" in told
    assert "disk: 250.0 MB (postgres 250.0 MB)" in told
    assert "a decision takes 15.0 kB of decision's log, which holds 100" in told
    assert "growth: 133.0 kB a minute on disk since 2026-01-02T03:04:05Z" in told
    show(found, as_json=True, figures=FIGURES)
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert (figures["decision_bytes"], figures["growth_bytes_per_minute"]) == (15_000.0, 133_000.0)
    assert figures["memory_bytes"] == FIGURES.memory_bytes


def test_what_is_not_known_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first decision and at the first look there is neither a size of one nor a growth."""
    figures = replace(FIGURES, decisions_count=0, growth_bytes_per_minute=None)
    show(StackStatus(Path("/there"), ()), as_json=False, figures=figures)
    told = capsys.readouterr().out
    assert "a decision" not in told
    assert "growth" not in told


def test_summary_says_that_something_is_wrong_though_all_of_it_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Who reads one line learns that there are more to read; a program reads the stack's alarms beside the parts."""
    alarm = StandingAlarm("disk_full", "No room [is] left.", "Make room.", "")
    parts = (Part("decision", "up", "127.0.0.1:7070", pid=1, alarms=(replace(alarm, name="other"),)),)
    found = StackStatus(Path("/there"), parts, alarms=(alarm,))
    show(found, as_json=False)
    told = capsys.readouterr().out
    assert "up, and 2 alarms (below): /there" in told
    assert "stack: disk_full: No room [is] left. Make room." in told
    show(found, as_json=True)
    object_ = json.loads(capsys.readouterr().out)
    assert object_["summary"] == "up"
    assert [one["name"] for one in object_["alarms"]] == ["disk_full"]


def test_path_of_postgres_outside_of_the_folder_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Who copies or moves the folder must know that the record is somewhere else."""
    found = StackStatus(Path("/root/.comity"), (), postgres_dir=Path("/var/lib/comity/1/postgres"))
    show(found, as_json=False)
    assert "the files of Postgres are in /var/lib/comity/1/postgres" in capsys.readouterr().out
    show(found, as_json=True)
    assert json.loads(capsys.readouterr().out)["postgres_dir"] == "/var/lib/comity/1/postgres"
