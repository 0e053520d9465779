"""A loop that publishes ends when it is cancelled, also in the very turn in which NATS answers."""

import asyncio

import pytest

from services.chassis.bus import _outages


async def test_a_cancellation_that_came_with_the_answer_is_not_forgotten() -> None:
    """asyncio.wait_for of Python 3.11 gives the answer and drops the cancellation; the bus raises it."""
    answered = asyncio.get_running_loop().create_future()

    async def publish_on() -> None:
        for _ in range(100):
            with _outages("publish"):
                await asyncio.wait_for(answered, 10)

    task = asyncio.create_task(publish_on())
    await asyncio.sleep(0)
    answered.set_result(None)
    task.cancel()
    async with asyncio.timeout(50):
        with pytest.raises(asyncio.CancelledError):
            await task
