"""When it is an alarm that decisions fall back."""

from dataclasses import replace

import pytest

from services.chassis import alarms
from services.chassis.alarms import Alarm, standing
from services.decision.domain.vocabulary import FallbackReason
from services.decision.handlers.falling_back import CLEARED_AT, LAST, OUTAGES, RAISED_AT, FallingBack
from tests.unit.decision.fakes import DEAD, Harness, Port, request
from tests.unit.decision.world import POLICY, site
from tests.virtual_time import in_virtual_time


@pytest.fixture(autouse=True)
def none_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "_since", {})


def stands() -> bool:
    return Alarm.MOST_FALL_BACK in standing()


@pytest.mark.parametrize("reason", FallbackReason)
def test_only_what_an_operator_can_mend_is_an_alarm(reason: FallbackReason) -> None:
    """That people do not agree, or that a site has no model yet, is as it should be."""
    falling_back = FallingBack()
    for _ in range(LAST):
        falling_back.add(reason)
    assert stands() == (reason in OUTAGES)


def test_alarm_is_raised_by_nearly_all_and_cleared_by_half() -> None:
    """One slow call is none, and between the two bounds it stays as it was."""
    falling_back = FallingBack()
    for _ in range(RAISED_AT - 1):
        falling_back.add(FallbackReason.DEADLINE_EXCEEDED)
    assert not stands()
    falling_back.add(FallbackReason.LOG_UNAVAILABLE)
    assert stands()
    for _ in range(LAST - CLEARED_AT - 1):
        falling_back.add(FallbackReason.UNSPECIFIED)
    assert stands()
    falling_back.add(FallbackReason.NO_CONSENT)
    assert not stands()


@in_virtual_time
async def test_decide_tells_when_all_of_its_answers_fall_back() -> None:
    """With consent away the default answers every time: after a while somebody has to look."""
    harness = Harness(site(policy=replace(POLICY, epsilon=0.0)))
    port: Port = harness.consent
    port.fails = DEAD
    for number in range(RAISED_AT):
        assert not stands()
        await harness.decide(request(request_id=f"r-{number}"))
    assert stands()
