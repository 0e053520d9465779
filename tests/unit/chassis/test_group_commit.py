"""Group commit: who waits leaves together, two batches at most, and a batch belongs to no caller."""

import asyncio
from collections.abc import Sequence

import pytest

from services.chassis import group_commit
from services.chassis.errors import Kind, ServiceError
from services.chassis.group_commit import GroupCommit


class Commits:
    """A commit that the test lets go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []
        self.in_flight = 0
        self.in_flight_max = 0

    async def __call__(self, batch: list[int]) -> Sequence[int | Exception]:
        gate = asyncio.Event()
        self.batches.append(batch)
        self.gates.append(gate)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        await gate.wait()
        self.in_flight -= 1
        return [KeyError(item) if item < 0 else item * 10 for item in batch]

    def open(self) -> None:
        for gate in self.gates:
            gate.set()


@pytest.fixture
def commits() -> Commits:
    return Commits()


def group(commits: Commits, batch_max: int = 500, bytes_max: int = 10**9) -> GroupCommit[int, int]:
    return GroupCommit(commits, batch_max=batch_max, bytes_max=bytes_max)


async def settle(commits: Commits, tasks: Sequence[asyncio.Task[int]]) -> list[int | BaseException]:
    """Let every commit go on until all callers have their answer."""
    async with asyncio.timeout(50):
        while not all(task.done() for task in tasks):
            commits.open()
            await asyncio.sleep(0.001)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_lone_call_leaves_at_once(commits: Commits) -> None:
    """Nobody to wait for: the item leaves at the end of the loop turn."""
    task = asyncio.create_task(group(commits)(1))
    await turns()
    assert commits.batches == [[1]]
    assert await settle(commits, [task]) == [10]


async def test_calls_of_one_turn_leave_together_and_get_their_own_results(commits: Commits) -> None:
    """A batch has one commit, each caller its own result or its own refusal."""
    commit = group(commits)
    tasks = [asyncio.create_task(commit(item)) for item in (1, -2, 3)]
    first, second, third = await settle(commits, tasks)
    assert commits.batches == [[1, -2, 3]]
    assert (first, third) == (10, 30)
    assert isinstance(second, KeyError)


async def test_two_batches_at_most_are_on_their_way(commits: Commits) -> None:
    """What comes while two batches are on their way waits for one of them, and leaves as one batch."""
    commit = group(commits, batch_max=10)
    tasks = []
    for item in range(100):
        tasks.append(asyncio.create_task(commit(item)))
        await asyncio.sleep(0)
    assert await settle(commits, tasks) == [item * 10 for item in range(100)]
    assert commits.in_flight_max == 2
    assert max(map(len, commits.batches)) == 10
    assert len(commits.batches) <= 12


async def test_batches_are_bounded_in_bytes(commits: Commits) -> None:
    """Large items make small batches; one larger than the bound goes alone."""
    commit = group(commits, bytes_max=100)
    tasks = [asyncio.create_task(commit(item, bytes_count=size)) for item, size in enumerate((60, 60, 30, 500, 1))]
    await settle(commits, tasks)
    assert commits.batches == [[0], [1, 2], [3], [4]]


async def test_cancelled_caller_leaves_its_batch_alone(commits: Commits) -> None:
    """A batch on its way goes on; an item that waits is taken back."""
    commit = group(commits)
    sent = [asyncio.create_task(commit(item)) for item in (1, 2)]
    await turns()
    commit_two = asyncio.create_task(commit(3))
    waiting = asyncio.create_task(commit(4))
    await asyncio.sleep(0)
    sent[0].cancel()
    waiting.cancel()
    results = await settle(commits, [*sent, commit_two, waiting])
    assert results[1:3] == [20, 30]
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[3], asyncio.CancelledError)
    assert commits.batches == [[1, 2], [3]]


async def test_failed_commit_is_told_to_everyone_in_it_and_nobody_else(commits: Commits) -> None:
    """An outage reaches the callers of its batch; the next batch is tried anew."""
    calls = 0

    async def fail_once(batch: list[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ServiceError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "gone")
        return batch

    commit: GroupCommit[int, int] = GroupCommit(fail_once, batch_max=10, bytes_max=10)
    first = await asyncio.gather(commit(1), commit(2), return_exceptions=True)
    assert [error.reason for error in first if isinstance(error, ServiceError)] == ["DATABASE_UNAVAILABLE"] * 2
    assert first[0] is not first[1]
    assert await commit(3) == 3


async def test_too_many_waiting_are_refused(commits: Commits, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away does not fill the memory: beyond the bound a call is told to come back later."""
    monkeypatch.setattr(group_commit, "WAITING_MAX", 3)
    commit = group(commits)
    tasks = [asyncio.create_task(commit(item)) for item in range(4)]
    await turns(1)
    refused = await asyncio.gather(tasks[3], return_exceptions=True)
    assert isinstance(refused[0], ServiceError)
    assert (refused[0].kind, refused[0].reason) == (Kind.EXHAUSTED, "LOG_OVERLOADED")
    assert await settle(commits, tasks[:3]) == [0, 10, 20]


async def test_drain_waits_for_all(commits: Commits) -> None:
    """After drain nothing waits and nothing is on its way."""
    commit = group(commits, batch_max=2)
    tasks = [asyncio.create_task(commit(item)) for item in range(9)]
    await turns()
    draining = asyncio.create_task(commit.drain())
    assert await settle(commits, tasks) == [item * 10 for item in range(9)]
    async with asyncio.timeout(50):
        await draining
    assert commits.in_flight == 0
