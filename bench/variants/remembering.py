"""Wrong consent reads that remember: what they have in common. An answer that is remembered outlives its truth."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from services.decision.clients import ConsentClient


class Remembering(ConsentClient):
    """Asks consent until it allows something, and answers later Decides of the same person from memory."""

    # How long an answer is remembered, from its receipt on.
    lasts_s = float("inf")

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.remembered: dict[str, tuple[float, Any]] = {}

    async def evaluate(self, *asked: Any, **more: Any) -> Any:
        """See handlers.ports.ConsentReader."""
        key = repr((asked, more))
        received_s, answer = self.remembered.get(key, (0.0, None))
        if answer is not None and time.monotonic() < received_s + self.lasts_s:
            return answer
        answer = await super().evaluate(*asked, **more)
        # A refusal is asked about again: remembered, it would only hide what is wrong with remembering a grant.
        if answer.allowed:
            self.remembered[key] = (time.monotonic(), answer)
        return answer


def instead(make: Callable[..., ConsentClient]) -> AbstractContextManager[object]:
    """Decision reads consent through what *make* makes."""
    return patch.object(wiring, "ConsentClient", make)
