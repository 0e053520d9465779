"""As many Decides are begun as are ready in time, whoever sends how many; and after a burst all of them again."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from services.decision.domain.admission import (
    ALWAYS_COUNT,
    FAIR_FACTOR,
    SHED_BURST_S,
    SHED_SHARE,
    Admission,
    Allowance,
    Seat,
)

BUDGET_S = 0.4
STEP_S = 0.002


@dataclass
class Running:
    """A call under way: when it began, and how much work is left of it."""

    seat: Seat
    began_s: float
    left_s: float


@dataclass
class Process:
    """A process that shares its time among the calls under way, as an event loop does; in simulated time.

    Args:
        each_s: work of a call.
        alone_s: what a call takes beside that, in which it waits for others.
        limited: admission is asked at all.
    """

    each_s: float
    alone_s: float = 0.0
    limited: bool = True
    admission: Admission = field(default_factory=Admission)
    now_s: float = 0.0
    running: list[Running] = field(default_factory=list)
    in_time: Counter[str] = field(default_factory=Counter)
    shed: Counter[str] = field(default_factory=Counter)
    late: int = 0

    def arrive(self, caller: str = "one") -> None:
        """A call comes in."""
        seat = self.admission.admit(caller, BUDGET_S if self.limited else 1e9)
        if seat is None:
            self.shed[caller] += 1
        else:
            self.running.append(Running(seat, self.now_s, self.each_s))

    def step(self) -> None:
        """A moment passes: whoever waited for the others long enough works on, and who has no time left gives up."""
        self.now_s += STEP_S
        working = [one for one in self.running if self.now_s - one.began_s > self.alone_s]
        for one in working:
            one.left_s -= STEP_S / len(working)
        for one in list(self.running):
            took_s = self.now_s - one.began_s
            if one.left_s > 0.0 and took_s < BUDGET_S:
                continue
            self.running.remove(one)
            self.admission.leave(one.seat, took_s)
            self.late += one.left_s > 0.0
            self.in_time[one.seat.caller] += one.left_s <= 0.0

    def run(self, seconds: float, *, per_s: float, caller: str = "one", quiet_per_s: float = 0.0) -> int:
        """Calls at an even rate; how many were ready in time."""
        before = self.in_time.total()
        owed = quiet_owed = 0.0
        for _ in range(round(seconds / STEP_S)):
            owed, quiet_owed = owed + per_s * STEP_S, quiet_owed + quiet_per_s * STEP_S
            while owed >= 1.0:
                self.arrive(caller)
                owed -= 1.0
            while quiet_owed >= 1.0:
                self.arrive("quiet")
                quiet_owed -= 1.0
            self.step()
        return self.in_time.total() - before


@pytest.mark.parametrize("alone_s", [0.0, 0.01])
@pytest.mark.parametrize(("each_s", "times"), [(0.004, 2), (0.004, 8), (0.02, 2), (0.02, 16)])
def test_overload_costs_nobody_who_is_let_in_the_answer(each_s: float, alone_s: float, times: int) -> None:
    """At many times the capacity as many are in time as at capacity, once the first calls have been seen to end."""
    process = Process(each_s, alone_s)
    process.run(2.0, per_s=times / each_s)
    process.late = 0
    assert process.run(3.0, per_s=times / each_s) >= 0.9 * 3.0 / each_s
    assert process.late == 0


def test_without_admission_overload_costs_everybody_the_answer() -> None:
    """What the simulation is worth: it shows what the limiter is against."""
    process = Process(0.005, limited=False)
    process.run(2.0, per_s=400)
    assert process.run(4.0, per_s=400) < 0.1 * 4.0 / 0.005


def test_nothing_is_shed_below_capacity() -> None:
    """However long, and also where calls come in twos and threes."""
    process = Process(0.005, alone_s=0.01)
    process.run(10.0, per_s=150)
    assert (process.shed.total(), process.late) == (0, 0)


def test_calls_under_way_do_not_oscillate() -> None:
    """Under steady overload there are always about as many."""
    process, seen = Process(0.005), []
    process.run(2.0, per_s=800)
    for _ in range(400):
        process.run(0.01, per_s=800)
        seen.append(process.admission.under_way_count)
    assert max(seen) <= 1.3 * min(seen)


def test_after_a_burst_all_are_let_in_again() -> None:
    """A thousand at once, of which nearly all are shed; a moment later it is as before."""
    process = Process(0.005)
    for _ in range(1_000):
        process.arrive()
    assert process.shed.total() >= 800
    process.run(1.0, per_s=0)
    process.shed.clear()
    assert process.run(2.0, per_s=100) >= 195
    assert process.shed.total() == 0


def test_process_that_becomes_fast_again_is_used_again() -> None:
    """What was learned while each call took thirty times as long is unlearned by those that are always let in."""
    process = Process(0.15)
    process.run(5.0, per_s=100)
    process.each_s = 0.005
    process.run(2.0, per_s=150)
    process.shed.clear()
    assert process.run(2.0, per_s=150) >= 290
    assert process.shed.total() == 0


def test_greedy_caller_leaves_room_for_a_quiet_one() -> None:
    """Ten calls a second beside a hundred times as many of another: they are let in, and ready in time."""
    process = Process(0.005)
    process.run(2.0, per_s=1_000, caller="greedy")
    process.run(10.0, per_s=1_000, caller="greedy", quiet_per_s=10)
    assert process.in_time["quiet"] >= 95
    assert process.shed["quiet"] <= 2
    assert process.in_time["greedy"] >= 0.9 * 10 / 0.005 - 100


def test_lone_caller_has_all_the_places() -> None:
    """They are shared among those who have calls under way, and kept free for nobody."""
    admission = Admission()
    # Each takes 10 ms beside nine others: one adds 1 ms, and 240 fit.
    beside = [admission.admit("one", BUDGET_S) for _ in range(9)]
    for _ in range(200):
        seat = admission.admit("one", BUDGET_S)
        assert seat is not None
        admission.leave(seat, 0.01)
    taken = len(beside)
    taken += sum(admission.admit("one", BUDGET_S) is not None for _ in range(1_000))
    assert taken == pytest.approx(240, rel=0.05)


def test_call_with_less_time_is_let_in_beside_fewer() -> None:
    """Its own deadline counts, not the server's."""
    admission = Admission()
    seats = [admission.admit("one", BUDGET_S) for _ in range(20)]
    assert all(seats)
    assert admission.admit("one", 0.02) is None
    assert admission.admit("one", BUDGET_S) is not None


def test_some_are_always_let_in_and_nobody_can_take_more_than_there_are() -> None:
    """Also when all were late for long; and thousands of callers are no way around the limit."""
    admission = Admission()
    for _ in range(1_000):
        seat = admission.admit("one", BUDGET_S)
        assert seat is not None
        admission.leave(seat, 60.0)
    assert sum(admission.admit("one", BUDGET_S) is not None for _ in range(100)) == ALWAYS_COUNT
    assert sum(admission.admit(f"caller {k}", BUDGET_S) is not None for k in range(100)) == 1
    assert admission.under_way_count == FAIR_FACTOR * ALWAYS_COUNT


def test_call_that_was_given_up_teaches_nothing() -> None:
    """A client that cancels would else tell that Decides are quick."""
    admission = Admission()
    known = admission._each_s
    for _ in range(100):
        seat = admission.admit("one", BUDGET_S)
        assert seat is not None
        admission.leave(seat, None)
    assert (admission._each_s, admission.under_way_count, len(admission._under_way)) == (known, 0, 0)


def test_shed_answers_have_their_share_of_the_time() -> None:
    """A burst of them, then so many a second; and when they may again is told."""
    allowance = Allowance()
    spent = 0
    while not allowance.wait_s(1.0):
        allowance.spend(0.001)
        spent += 1
    assert spent == pytest.approx(1_000 * SHED_BURST_S, abs=1)
    wait_s = allowance.wait_s(1.0)
    assert wait_s > 0.0
    assert allowance.wait_s(1.0 + wait_s) == 0.0
    answered = 0
    for step in range(10_000):
        now_s = 2.0 + step / 1_000
        if not allowance.wait_s(now_s):
            allowance.spend(0.001)
            answered += 1
    assert answered == pytest.approx(10_000 * SHED_SHARE, rel=0.05)
