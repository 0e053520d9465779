"""How long a revocation waits, as the verdicts tell it."""

import asyncio
from typing import Any

from services.consent.handlers.ledger import ConsentHandlers


def test_wait_is_told_as_it_was_set() -> None:
    """A rounding error below the setting would make every decision service with the same setting refuse profiles."""
    nothing: Any = None
    told = [
        ConsentHandlers(*[nothing] * 5, drain_s=ms / 1000, pause=asyncio.sleep).decide_budget_ms for ms in range(5000)
    ]
    assert told == list(range(5000))
