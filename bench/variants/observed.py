"""The real decision service, which also says when each answer left it: every other variant of it does too.

What a promise about emitted answers must be judged by is the moment of emission. A client sees only the arrival, which
on a busy machine is later than what it did meanwhile. All processes of a machine share the monotonic clock.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.service import DecisionService

EMITTED = "comity-emitted-s"


@contextmanager
def observed() -> Iterator[None]:
    """Let Decide put the moment of its answer, in seconds of the monotonic clock, into the trailing metadata."""
    real = DecisionService.Decide

    async def decide(self: DecisionService, request: Any, context: Any) -> Any:
        answer = await real(self, request, context)
        context.set_trailing_metadata(((EMITTED, repr(time.monotonic())),))
        return answer

    with patch.object(DecisionService, "Decide", decide):
        yield


if __name__ == "__main__":
    with observed():
        run("decision", wiring.Settings, wiring.build)
