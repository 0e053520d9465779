"""What commands print: words of enums, whole tables, progress where nobody watches."""

import contextlib
import io
import json
from collections.abc import Awaitable, Callable

import pytest
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as decision_pb
from comity.decision.v1 import decision_service_pb2 as decide_pb
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from cli import output
from cli.bundle import Problem
from cli.commands_decide import _show_decision
from cli.commands_log import show_explanation
from cli.commands_site import _show_problems
from cli.failures import show
from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.limits import UNPRINTABLE
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
    monkeypatch.setattr(output, "errors", output.SafeConsole(file=written, width=80))
    with output.progress_bar() as bar:
        task = bar.add_task("training", total=None)
        for done in range(3):
            bar.update(task, description="training: [replay]", completed=done)
        bar.advance(task)
    assert written.getvalue().splitlines() == ["training", "training: [replay]"]


async def test_quiet_progress_says_only_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json no step is a line of its own, and who waits for long is still told how far it is."""
    written = io.StringIO()
    monkeypatch.setattr(output, "errors", output.SafeConsole(file=written, width=80))
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


# Markup that closes what nobody opened, a screen that is cleared, a line that is turned around, an emoji code.
HOSTILE = "[/red]boom\x1b[2J\x9b0m\u202e:100:29"
SHOWN = "[/red]boom\ufffd[2J\ufffd0m\ufffd:100:29"


def _decision() -> None:
    decision = decide_pb.PlacementDecision(placement_id=HOSTILE, decision_id="d")
    decision.slate.entries.add(item_id=HOSTILE, variant_id=HOSTILE)
    _show_decision(decision)


def _explanation() -> None:
    answer = decide_pb.ExplainResponse()
    answer.steps.add(stage="served", finding=HOSTILE)
    answer.without_exploration.add(item_id=HOSTILE)
    show_explanation(answer)


def _problems() -> None:
    _show_problems([Problem("items.yaml", 1, 1, f"[0].{HOSTILE}", HOSTILE, "mend it")], as_json=False)


def _error() -> None:
    problems = (FieldProblem("items[0].id", HOSTILE),)
    show(ServiceError(Kind.INVALID, "INVALID_FIELD", f"items: {HOSTILE}", problems=problems), as_json=False)


def _table() -> None:
    table = Table(title=HOSTILE)
    table.add_column("item")
    table.add_row(HOSTILE)
    output.console.print(table)


@pytest.mark.parametrize("print_it", [_decision, _explanation, _problems, _error, _table])
def test_what_is_named_like_markup_or_a_control_sequence_is_printed_as_text(
    print_it: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """An item called `[/red]boom` ends no command, and nothing of an id is obeyed by the terminal."""
    print_it()
    told = capsys.readouterr()
    text = told.out + told.err
    assert SHOWN in text
    assert not UNPRINTABLE.search(text.replace("\n", ""))


@given(st.text(), st.text())
def test_styled_shows_every_value_as_it_is(first: str, second: str) -> None:
    """Whatever brackets, backslashes and codes a value holds, its text is what is shown."""
    shown = output.styled("[bold]{}[/] and [red]{}[/]", first, second).plain
    assert shown == " and ".join(" ".join(output.plain(one).split("\n")) for one in (first, second))


@given(st.dictionaries(st.text(), st.text()))
def test_json_says_everything_and_moves_no_cursor(value: dict[str, str]) -> None:
    """What JSON would let through as it is comes as its code, and is read back as it was."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        output.print_json(value)
    assert json.loads(written.getvalue()) == value
    assert not UNPRINTABLE.search(written.getvalue().replace("\n", ""))
