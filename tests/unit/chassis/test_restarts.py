"""When a background loop that crashed is started again."""

import pytest

from services.chassis.errors import Kind, ServiceError
from services.chassis.lifecycle import BUGS_MAX, DELAY_S_MAX, STEADY_S, Restarts

AWAY = ServiceError(Kind.UNAVAILABLE, "AWAY", "away")


def test_the_wait_doubles_up_to_its_cap() -> None:
    """An outage is not hammered, and its end is seen within seconds."""
    restarts = Restarts()
    delays = [restarts.delay_s_after(AWAY, 0.0) for _ in range(8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, DELAY_S_MAX, DELAY_S_MAX]


def test_a_steady_loop_starts_over() -> None:
    """Crashes far apart are not one series."""
    restarts = Restarts()
    for _ in range(5):
        restarts.delay_s_after(AWAY, 0.0)
    assert restarts.delay_s_after(AWAY, STEADY_S) == 0.1


@pytest.mark.parametrize("outage", [AWAY, ConnectionRefusedError(), TimeoutError()])
def test_an_outage_is_waited_out_for_ever(outage: Exception) -> None:
    """That something outside is away is not mended by ending the process, and tells of itself."""
    restarts = Restarts()
    assert all(restarts.delay_s_after(outage, 0.0) <= DELAY_S_MAX for _ in range(100))
    assert not restarts.is_broken


def test_a_bug_that_repeats_is_broken_until_it_runs_steadily() -> None:
    """One that answers but no longer relays looks healthy; the alarm says that it is not."""
    restarts = Restarts()
    for _ in range(BUGS_MAX):
        assert not restarts.is_broken
        restarts.delay_s_after(KeyError(), 0.0)
    assert restarts.is_broken
    restarts.delay_s_after(KeyError(), STEADY_S)
    assert not restarts.is_broken
