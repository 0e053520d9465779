"""How the time of a call is counted down, on a clock that stands still."""

import asyncio
import math

from services.chassis.deadline import (
    Deadline,
    carry_deadline,
    current_deadline,
    deadline_scope,
    latest,
    remaining_s,
    shave,
    start_deadline,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_deadline_time_is_unbounded() -> None:
    """Nobody set one: nothing is left to count, and a call onward may take what it wants."""
    assert remaining_s() is None
    assert shave(1.0) == math.inf


def test_time_passes_and_ends_at_zero() -> None:
    """What remains shrinks with the clock and is never negative."""
    clock = Clock()
    with deadline_scope(2.0, clock):
        assert remaining_s() == 2.0
        assert shave(0.5) == 1.5
        clock.now_s += 1.75
        assert remaining_s() == 0.25
        assert shave(0.5) == 0.0
        clock.now_s += 10
        assert remaining_s() == 0.0
    assert remaining_s() is None


def test_a_scope_inside_only_shrinks() -> None:
    """Nobody gives back time that the caller does not have."""
    clock = Clock()
    with deadline_scope(2.0, clock):
        with deadline_scope(10.0, clock):
            assert remaining_s() == 2.0
        with deadline_scope(0.5, clock):
            assert remaining_s() == 0.5
        assert remaining_s() == 2.0


async def test_tasks_inherit_the_deadline() -> None:
    """Work that a call starts has the call's time."""
    clock = Clock()

    async def work() -> float | None:
        return remaining_s()

    with deadline_scope(3.0, clock):
        assert await asyncio.create_task(work()) == 3.0


async def test_a_started_deadline_stays_in_its_task() -> None:
    """The edge sets it for one call and no other sees it."""

    async def call() -> float | None:
        start_deadline(1.0, Clock())
        return remaining_s()

    assert await asyncio.create_task(call()) == 1.0
    assert remaining_s() is None


async def test_a_deadline_can_be_carried_to_another_task() -> None:
    """Work done for several calls takes over a deadline that it did not inherit."""
    with deadline_scope(4.0, Clock()):
        deadline = current_deadline()

    async def work() -> float | None:
        carry_deadline(deadline)
        return remaining_s()

    assert await asyncio.create_task(work()) == 4.0


def test_shared_work_has_the_last_deadline_and_none_where_one_has_none() -> None:
    """A caller that is short of time does not take it from the others."""
    clock = Clock()
    short, long = Deadline(101.0, clock), Deadline(105.0, clock)
    assert latest([short, long, short]) == long
    assert latest([short, None]) is None
    assert latest([]) is None
