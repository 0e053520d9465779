"""A feedback in which one row or event that cannot be read fails the page that it is in."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import services.feedback.main as wiring
from services.chassis.errors import ServiceError
from services.chassis.lifecycle import run
from services.feedback.handlers.join import JoinOutcomes
from services.feedback.store import archive, behavior, decisions


def read_each(events: Sequence[Any], opened: Sequence[Any], read: Callable[..., Any], *_: str) -> tuple[Any, Any]:
    """See chassis.dead_letters; raises for all of them."""
    found = []
    for event, plain in zip(events, opened, strict=True):
        if isinstance(plain, ServiceError):
            raise plain
        found.append((event, read(event, plain)))
    return found, []


async def apart(_: JoinOutcomes, items: Sequence[Any], work: Callable[[Sequence[Any]], Awaitable[None]]) -> None:
    """See handlers.join; takes a page as a whole, or not at all."""
    if items:
        await work(items)


if __name__ == "__main__":
    with ExitStack() as patched:
        for module in (archive, behavior, decisions):
            patched.enter_context(patch.object(module, "read_each", read_each))
        patched.enter_context(patch.object(JoinOutcomes, "_apart", apart))
        run("feedback", wiring.Settings, wiring.build)
