"""The checker of revocation judges as a brute-force search does, and fast enough for whole runs."""

import math
import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.prove.histories import Act, Call
from bench.prove.linearizable import violations

MOMENTS = st.integers(0, 12)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    act = draw(st.sampled_from(list(Act)))
    began, ended = sorted((draw(MOMENTS), draw(MOMENTS)))
    return Call(act, began, math.inf if draw(st.integers(0, 3)) == 0 else ended)


def is_linearizable(history: Sequence[Call]) -> bool:
    """Whether some order of the calls, tried one after another, explains them all."""

    def search(left: frozenset[int], granted: bool) -> bool:
        if all(not history[k].is_known for k in left):
            return True  # they may have no effect at all
        first_end = min(history[k].ended_s for k in left)
        for k in left:
            call = history[k]
            if call.began_s > first_end:
                continue  # another one had ended before this one began
            if call.is_write:
                if search(left - {k}, bool(call.value)):
                    return True
            elif call.value is granted and search(left - {k}, granted):
                return True
        return False

    counting = frozenset(
        k for k, call in enumerate(history) if call.is_write or (call.is_known and call.value is not None)
    )
    return search(counting, granted=False)


@settings(max_examples=1_500, deadline=None)
@given(st.lists(calls(), max_size=7))
def test_it_judges_as_brute_force_does(history: list[Call]) -> None:
    """No violation is found where and only where some order explains everything."""
    assert (violations(history) == []) == is_linearizable(history)


@settings(max_examples=500, deadline=None)
@given(st.lists(calls(), max_size=7))
def test_without_the_violations_the_history_is_linearizable(history: list[Call]) -> None:
    """What is reported is reason enough: taken out, nothing is left to report."""
    found = violations(history)
    assert all(not call.is_write for call in found)
    assert is_linearizable([call for call in history if call not in found])


def told(*some: tuple[Act, float, float]) -> list[Call]:
    return [Call(act, began, ended) for act, began, ended in some]


def test_readers_must_agree_on_one_order() -> None:
    """Each of the two may be right alone; together nothing explains them, for the revocation stays in effect."""
    history = told((Act.GRANT, 0, 1), (Act.REVOKE, 2, 9), (Act.DECIDE_REFUSED, 3, 4), (Act.DECIDE_PERSONAL, 5, 6))
    assert violations(history) == [history[3]]


def test_a_change_without_answer_may_come_late_and_only_once() -> None:
    """It can explain one turn of mind at any later time, and not a second one."""
    late = told(
        (Act.GRANT, 0, 1), (Act.REVOKE, 2, math.inf), (Act.DECIDE_PERSONAL, 50, 51), (Act.DECIDE_REFUSED, 60, 61)
    )
    assert violations(late) == []
    again = [*late, Call(Act.DECIDE_PERSONAL, 70, 71)]
    assert violations(again) == [again[-1]]


def lifelong(count: int, seed: int) -> list[Call]:
    """A lawful history of one person, recorded from a register that keeps its promise."""
    rng = random.Random(seed)
    now, granted, history = 0.0, False, []
    for k in range(count):
        now += rng.expovariate(20.0)
        before = now - rng.uniform(0.0, 0.4)
        after = now + rng.uniform(0.0, 0.4)
        if k % 25 == 0:
            granted = not granted
            history.append(Call(Act.GRANT if granted else Act.REVOKE, now - 0.01, now + 0.01))
            now += 0.02
        else:
            history.append(Call(Act.DECIDE_PERSONAL if granted else Act.DECIDE_REFUSED, before, after))
    return history


def test_two_hundred_thousand_calls_are_judged() -> None:
    """A whole run in one history, many calls overlapping, without a violation; one stale read in it is found."""
    history = lifelong(200_000, seed=1)
    assert violations(history) == []
    revoke = next(k for k, call in enumerate(history) if k > 100_000 and call.act is Act.REVOKE)
    stale = Call(Act.DECIDE_PERSONAL, history[revoke].ended_s + 0.001, history[revoke].ended_s + 0.01, "stale")
    assert [call.ref for call in violations([*history, stale])] == ["stale"]
