"""What replays and explanations load is kept, whoever waited for it."""

import asyncio

import pytest

from services.decision.handlers.inspect import Kept


async def test_what_is_slow_to_load_is_kept_although_its_caller_left() -> None:
    """Where loading takes longer than a caller waits, the next one finds it instead of beginning again."""
    loads, may_end, began = 0, asyncio.Event(), asyncio.Event()

    async def load(name: str) -> str | None:
        nonlocal loads
        loads += 1
        began.set()
        await may_end.wait()
        return name.upper()

    kept = Kept[str, str](load, 2)
    first = asyncio.create_task(kept.get("model"))
    await began.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(kept.get("model"))
    may_end.set()
    assert [await second, await kept.get("model")] == ["MODEL", "MODEL"]
    assert loads == 1
