"""How a command ends when it cannot do what was asked: one clear line for people, an object for programs."""

import asyncio
import errno
import json
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import grpc
import typer

from cli.output import write
from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error

T = TypeVar("T")

# What a shell shows for a program that was ended by Ctrl-C, and by SIGTERM.
INTERRUPTED = 130
TERMINATED = 143

STATUS_HINT = "`comity status` says what runs, `comity up` starts what does not"
# Added to what gRPC itself says of a call, in words that help; what a service says of it is passed on as it is.
_UNANSWERED = {
    "RPC_UNAVAILABLE": f"a service that is needed does not answer; {STATUS_HINT}",
    "RPC_CANCELLED": f"a service that is needed went down meanwhile; {STATUS_HINT}",
    "RPC_DEADLINE_EXCEEDED": f"no answer came in the time that was allowed; {STATUS_HINT}",
    "RPC_UNIMPLEMENTED": "what answers does not know this call; is the address that of the right service?",
}
_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in this user's quota",
    errno.EACCES: "run as the user whom it belongs to, or name another place",
    errno.EPERM: "run as the user whom it belongs to, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.EMFILE: "allow this process more open files (ulimit -n)",
}


def run(work: Coroutine[Any, Any, T], *, as_json: bool = False) -> T:
    """The result of asynchronous *work*; an error ends the command with exit code 1 and says what to do."""
    try:
        return asyncio.run(work)
    except ServiceError as error:
        fail(error, as_json=as_json)
    except grpc.aio.AioRpcError as error:  # of a stream; other calls end in a ServiceError
        fail(from_call_error(error), as_json=as_json)
    except OSError as error:
        fail(of_system(error), as_json=as_json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


async def until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """The result of *work*; SIGTERM ends it as Ctrl-C does, so that what it started is stopped."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(TERMINATED) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def fail(error: ServiceError, *, as_json: bool = False) -> NoReturn:
    """End the command with exit code 1; the error goes to standard error, as an object when *as_json*."""
    show(error, as_json=as_json)
    raise typer.Exit(1)


def show(error: ServiceError, *, as_json: bool) -> None:
    """Say on standard error what is wrong and what to do, as an object when *as_json*."""
    message = ": ".join(filter(None, (error.message, _UNANSWERED.get(error.reason, ""))))
    if as_json:
        problems = [{"field": problem.field, "problem": problem.problem} for problem in error.problems]
        body = {"kind": error.kind.value, "reason": error.reason, "message": message, "problems": problems}
        write(json.dumps({"error": body}), error=True)
        return
    write(f"error: {message} [{error.reason}]", error=True)
    for problem in error.problems:
        if problem.problem not in message:
            write(f"  {problem.field}: {problem.problem}", error=True)


def of_system(error: OSError) -> ServiceError:
    """What the operating system refused: which file, why, and what may help."""
    why = error.strerror or str(error) or type(error).__name__
    what = f"{error.filename}: {why}" if error.filename else why
    remedy = _REMEDIES.get(error.errno or 0, "name another place, or mend that")
    return ServiceError(Kind.FAILED_PRECONDITION, "REFUSED_BY_SYSTEM", f"{what}; {remedy}")
