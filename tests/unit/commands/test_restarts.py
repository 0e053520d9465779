"""When what has ended is started again, and when somebody has to look."""

from cli.stack.restarts import MANY, STEADY_S, WAIT_S_MAX, Restarts, after, too_many, wait_s


def ends(times: int, *, after_s: float, start_s: float = 1_000.0) -> tuple[list[float], Restarts]:
    """The waits of a process that lives for *after_s* each time, and its restarts."""
    now_s, done, waits = start_s, None, []
    for _ in range(times):
        waits.append(wait_s(done, now_s))
        now_s += waits[-1]
        done = after(done, now_s)
        now_s += after_s
    assert done is not None
    return waits, done


def test_waits_double_up_to_a_bound() -> None:
    """The first restart comes at once, and none later than the bound."""
    waits, done = ends(9, after_s=0.0)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, WAIT_S_MAX, WAIT_S_MAX]
    assert (done.count, done.in_a_row) == (9, 9)


def test_what_ran_steadily_begins_anew() -> None:
    """Crashes that are far apart are each mended at once, and are no alarm however many they are."""
    waits, done = ends(50, after_s=STEADY_S)
    assert set(waits) == {0.0}
    assert (done.count, done.in_a_row) == (50, 1)
    assert not too_many(done, done.last_s)


def test_alarm_stands_while_it_ends_again_and_again() -> None:
    """From so many in a row until it has run steadily."""
    _, done = ends(MANY, after_s=0.0)
    assert too_many(done, done.last_s)
    assert not too_many(ends(MANY - 1, after_s=0.0)[1], done.last_s)
    assert not too_many(done, done.last_s + STEADY_S)
    assert not too_many(None, 0.0)


def test_clock_that_was_put_back_delays_nothing() -> None:
    """A restart that lies in the future says nothing: what has ended is started now."""
    _, done = ends(9, after_s=0.0)
    assert wait_s(done, done.last_s - 3600.0) == 0.0
    assert after(done, done.last_s - 3600.0).in_a_row == 1
