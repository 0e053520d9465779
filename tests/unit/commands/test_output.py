"""What commands print: words of enums, whole tables, progress where nobody watches."""

import io
from collections.abc import Awaitable, Callable

import pytest
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as decision_pb
from rich.console import Console

from cli import output
from services.chassis.words import enum_word
from tests.waiting import eventually


def test_an_enum_is_told_by_its_word() -> None:
    """Without the prefix that all of its words share; nothing for what is not set."""
    assert enum_word(consent_pb.ConsentState.DESCRIPTOR, consent_pb.CONSENT_STATE_OBJECTED) == "OBJECTED"
    assert enum_word(decision_pb.FallbackReason.DESCRIPTOR, decision_pb.FALLBACK_REASON_NO_CONSENT) == "NO_CONSENT"
    assert enum_word(decision_pb.Reason.DESCRIPTOR, decision_pb.REASON_UNSPECIFIED) == ""


def test_a_word_of_a_newer_server_is_told_by_its_number() -> None:
    """The command is of no use to anybody if it breaks there."""
    assert enum_word(decision_pb.Reason.DESCRIPTOR, 4711) == "4711"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_goes_into_a_file_is_not_cut_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets room for ids; a terminal and whoever sets COLUMNS get what they have."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output._width(io.StringIO()) == output.UNWATCHED_WIDTH
    assert output._width(_Terminal()) is None
    monkeypatch.setenv("COLUMNS", "60")
    assert output._width(io.StringIO()) is None


def test_a_step_is_told_once_where_no_bar_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is one line when it begins, however often it moves on."""
    written = io.StringIO()
    monkeypatch.setattr(output, "errors", Console(file=written, width=80))
    with output.progress_bar() as bar:
        task = bar.add_task("training", total=None)
        for done in range(3):
            bar.update(task, description="training: [replay]", completed=done)
        bar.advance(task)
    assert written.getvalue().splitlines() == ["training", "training: [replay]"]


async def test_quiet_progress_says_only_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json no step is a line of its own, and who waits for long is still told how far it is."""
    written = io.StringIO()
    monkeypatch.setattr(output, "errors", Console(file=written, width=80))
    with output.progress_bar(quiet=True) as bar:
        bar.update(bar.add_task("training"), description="more")
    with output.progress(quiet=True) as tell:
        tell("more")
    assert written.getvalue() == ""
    monkeypatch.setattr(output, "SAY_EVERY_S", 0.001)
    with output.progress_bar(quiet=True) as bar:
        bar.update(bar.add_task("training", total=9), completed=4)
        await eventually(said("training: 4 of 9", written))
    with output.progress(quiet=True) as tell:
        tell("publishing")
        await eventually(said("publishing", written))


def said(text: str, written: io.StringIO) -> Callable[[], Awaitable[bool]]:
    async def is_said() -> bool:
        return text in written.getvalue()

    return is_said
