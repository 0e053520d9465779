"""How a command ends when it cannot do what was asked: one clear line for people, an object for programs."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import typer

from services.chassis.errors import ServiceError

T = TypeVar("T")

# What a shell shows for a program that was ended by Ctrl-C.
INTERRUPTED = 130


def run(work: Coroutine[Any, Any, T], *, as_json: bool = False) -> T:
    """The result of asynchronous *work*; an error ends the command with exit code 1 and says what to do."""
    try:
        return asyncio.run(work)
    except ServiceError as error:
        fail(error, as_json=as_json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def fail(error: ServiceError, *, as_json: bool = False) -> NoReturn:
    """End the command with exit code 1; the error goes to standard error, as an object when *as_json*."""
    if as_json:
        problems = [{"field": problem.field, "problem": problem.problem} for problem in error.problems]
        body = {"kind": error.kind.value, "reason": error.reason, "message": error.message, "problems": problems}
        print(json.dumps({"error": body}), file=sys.stderr)
        raise typer.Exit(1)
    print(f"error: {error.message} [{error.reason}]", file=sys.stderr)
    for problem in error.problems:
        if problem.problem not in error.message:
            print(f"  {problem.field}: {problem.problem}", file=sys.stderr)
    raise typer.Exit(1)
