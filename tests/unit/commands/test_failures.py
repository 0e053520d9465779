"""How commands end: one line and an exit code, an object for programs, never a traceback for what may happen."""

import asyncio
import errno
import json
import signal

import grpc
import pytest
import typer

from cli.failures import INTERRUPTED, TERMINATED, of_system, run, until_terminated
from services.chassis.errors import FieldProblem, Kind, ServiceError


async def _raise(error: BaseException) -> None:
    raise error


def _ends(error: BaseException, *, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as ended:
        run(_raise(error), as_json=as_json)
    return ended.value.exit_code


def test_a_refusal_says_each_problem_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The message, its code, and the problems that the message does not say already."""
    problems = (FieldProblem("a", "is said"), FieldProblem("b", "is not said"))
    assert _ends(ServiceError(Kind.INVALID, "WRONG", "a: is said", problems=problems)) == 1
    assert capsys.readouterr().err.splitlines() == ["error: a: is said [WRONG]", "  b: is not said"]


def test_a_service_that_does_not_answer_is_told_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """Which call it was, and what to look at; programs keep the code."""
    error = ServiceError(Kind.UNAVAILABLE, "RPC_UNAVAILABLE", "decision.Replay failed with UNAVAILABLE")
    assert _ends(error, as_json=True) == 1
    told = json.loads(capsys.readouterr().err)["error"]
    assert told["reason"] == "RPC_UNAVAILABLE"
    assert told["message"].startswith("decision.Replay failed with UNAVAILABLE: ")
    assert "`comity status`" in told["message"]


def test_a_stream_that_breaks_off_ends_like_any_other_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Streams are read without the wrapper that types errors; their failure is typed here."""
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    assert _ends(error) == 1
    assert "`comity up`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EACCES, "run as the user"), (errno.EIO, "mend that")]
)
def test_what_the_system_refuses_names_file_and_remedy(number: int, remedy: str) -> None:
    """A full disk and a folder of somebody else's are told by the name of the file and what to do."""
    error = of_system(OSError(number, "refused", "/there/file"))
    assert error.kind is Kind.FAILED_PRECONDITION
    assert error.message.startswith("/there/file: refused; ")
    assert remedy in error.message


def test_ctrl_c_ends_as_a_shell_expects(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 130 and one word."""
    assert _ends(KeyboardInterrupt()) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_lets_what_was_begun_end() -> None:
    """SIGTERM ends the work as Ctrl-C does: its cleaning up is done before the command ends, with code 143."""
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            cleaned = True

    with pytest.raises(typer.Exit) as ended:
        run(until_terminated(work()))
    assert ended.value.exit_code == TERMINATED
    assert cleaned
