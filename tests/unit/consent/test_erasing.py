"""How old the oldest erasure is, told whether or not the ledger can be read."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis.errors import Kind, ServiceError
from services.chassis.lag import LOOK_EVERY_S, STALE_S, Lag
from services.consent.domain.erasure import Erasure
from services.consent.handlers import erasing
from tests.virtual_time import in_virtual_time

AWAY_S = 100 * STALE_S
NOW = datetime(2026, 11, 30, tzinfo=UTC)


class FakeErasures:
    """What the worker reads of handlers.privacy_ports.ErasureLedger; None: the ledger is away."""

    def __init__(self, *running: Erasure) -> None:
        self.runs: tuple[Erasure, ...] | None = running

    async def running(self) -> list[Erasure]:
        """See handlers.privacy_ports.ErasureLedger."""
        if self.runs is None:
            raise ServiceError(Kind.UNAVAILABLE, "DOWN", "nobody answers")
        return list(self.runs)


@pytest.mark.parametrize(("age_s", "shown_s"), [(None, 0.0), (30.0, 30.0 + AWAY_S)])
def test_age_of_the_oldest_erasure_grows_only_while_one_runs(
    monkeypatch: pytest.MonkeyPatch, age_s: float | None, shown_s: float
) -> None:
    """A ledger that is away makes one that runs no younger, and none where none runs."""

    @in_virtual_time
    async def watched() -> None:
        monkeypatch.setattr(erasing, "Lag", partial(Lag, now_s=asyncio.get_running_loop().time))
        running = [] if age_s is None else [Erasure(1, "e1", "ann", ("ann",), NOW - timedelta(seconds=age_s))]
        erasures, clock = FakeErasures(*running), SimpleNamespace(now=lambda: NOW)
        ports: Any = SimpleNamespace(erasures=erasures, clock=clock)
        watching = asyncio.create_task(erasing.EraseWorker(ports).watch_age())
        await asyncio.sleep(LOOK_EVERY_S / 2)
        erasures.runs = None
        await asyncio.sleep(AWAY_S - LOOK_EVERY_S / 2)
        assert REGISTRY.get_sample_value("comity_erasure_oldest_seconds") == pytest.approx(shown_s)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    watched()
