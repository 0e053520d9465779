"""Consent read once for everybody and never again: what Decide would cost if it did not ask. For the bench alone.

Everybody whom the bench decides for agreed to the same, so one answer to each set of purposes does for all.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.gather import Gatherer, Load
from services.chassis.lifecycle import run
from services.decision import clients


class Remembering(Gatherer[Any, Any]):
    """Stands where a Gatherer stands, and asks consent one question a set of purposes."""

    def __init__(
        self, send: Callable[[list[Any]], Awaitable[Sequence[Any]]], load: Load, *, name: str, **more: Any
    ) -> None:
        super().__init__(send, load, name=name, **more)
        self._remembers = name == "consent.Evaluate"
        self._known: dict[tuple[str, ...], Any] = {}

    def __class_getitem__(cls, _: object) -> "type[Remembering]":
        return cls

    async def __call__(self, query: Any) -> Any:
        """The result of this query, or of the first that asked for the same purposes."""
        if not self._remembers:
            return await super().__call__(query)
        purposes = tuple(query.purposes)
        if purposes not in self._known:
            self._known[purposes] = await super().__call__(query)
        return self._known[purposes]


if __name__ == "__main__":
    with patch.object(clients, "Gatherer", Remembering):
        run("decision", wiring.Settings, wiring.build)
