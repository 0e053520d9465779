"""Long work of one call in short turns of the loop, so that the calls beside it do not wait for all of it."""

import asyncio
from collections.abc import AsyncIterator

# Rows that are opened or read in one turn: about a millisecond of sealed decisions.
TURN = 16


async def in_turns(count: int) -> AsyncIterator[int]:
    """0, TURN, 2 · TURN … below *count*; between two of them everybody else who is ready has a turn."""
    for start in range(0, count, TURN):
        if start:
            await asyncio.sleep(0)
        yield start
