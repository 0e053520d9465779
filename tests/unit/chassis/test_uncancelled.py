"""Work that others need is finished when whoever asked for it has gone."""

import asyncio

import pytest

from services.chassis import uncancelled
from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.uncancelled import Shared


class Work:
    """Waits until it may go on; notes how much time it had, and that it came to its end."""

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.began = asyncio.Event()
        self.left_s: float | None = 0.0
        self.ended = asyncio.Event()
        self.fails = False
        self.times = 0
        self.shared = Shared[str, int]()

    async def __call__(self) -> int:
        self.times += 1
        self.left_s = remaining_s()
        self.began.set()
        await self.may_go_on.wait()
        self.ended.set()
        if self.fails:
            raise ServiceError(Kind.UNAVAILABLE, "DOWN", "nobody answers")
        return 7


async def asked(work: Work) -> "asyncio.Task[int]":
    """Somebody who waits for the work, with hardly any time."""
    with deadline_scope(0.001):
        task = asyncio.create_task(work.shared("key", work))
    await work.began.wait()
    return task


async def test_work_goes_on_without_its_caller_and_its_deadline() -> None:
    """The caller leaves at once; the work has the time that it takes."""
    work = Work()
    task = await asked(work)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not work.ended.is_set()
    work.may_go_on.set()
    await work.ended.wait()
    assert work.left_s is None


async def test_whoever_asks_meanwhile_joins() -> None:
    """One question for all; who comes after a parting begins anew."""
    work = Work()
    first, second = await asked(work), await asked(work)
    work.shared.part()
    third = await asked(work)
    work.may_go_on.set()
    assert [await one for one in (first, second, third)] == [7, 7, 7]
    assert work.times == 2


async def test_an_error_is_everybodys_own() -> None:
    """One object raised to many would collect all their tracebacks; and the next one begins again."""
    work = Work()
    work.fails = True
    tasks = [await asked(work), await asked(work)]
    work.may_go_on.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [ServiceError] * 2
    assert errors[0] is not errors[1]
    work.fails = False
    assert await work.shared("key", work) == 7


async def test_too_much_of_it_ends_with_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left behind has a bound."""
    monkeypatch.setattr(uncancelled, "UNDER_WAY_MAX", 0)
    work = Work()
    task = await asked(work)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    work.may_go_on.set()
    await asyncio.sleep(0)
    assert not work.ended.is_set()
