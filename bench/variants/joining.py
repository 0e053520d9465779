"""The wrong consent read: a Decide joins a question about the same person that is already on its way.

It looks like a harmless saving. The answer can have been read before a Revoke that returned before this Decide began.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from bench.variants.observed import observed
from services.chassis.gather import Gatherer, Load
from services.chassis.lifecycle import run
from services.decision import clients


class Joining(Gatherer[Any, Any]):
    """Stands where a Gatherer stands, and shares answers that are on their way."""

    def __init__(
        self, send: Callable[[list[Any]], Awaitable[Sequence[Any]]], load: Load, *, name: str, **more: Any
    ) -> None:
        super().__init__(send, load, name=name, **more)
        self._shares = name == "consent.Evaluate"
        self._under_way: dict[bytes, asyncio.Future[Any]] = {}

    def __class_getitem__(cls, _: object) -> "type[Joining]":
        return cls

    async def __call__(self, query: Any) -> Any:
        """The result of this query, or of an equal one that was asked earlier."""
        if not self._shares:
            return await super().__call__(query)
        asked = query.SerializeToString()
        if asked not in self._under_way:
            future = asyncio.ensure_future(super().__call__(query))
            self._under_way[asked] = future
            future.add_done_callback(lambda _: self._under_way.pop(asked, None))
        return await asyncio.shield(self._under_way[asked])


if __name__ == "__main__":
    with observed(), patch.object(clients, "Gatherer", Joining):
        run("decision", wiring.Settings, wiring.build)
