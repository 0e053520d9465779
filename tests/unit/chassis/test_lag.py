"""A lag is the age of what waits at the moment it is asked for, whether or not anybody still looks."""

import asyncio

from prometheus_client import CollectorRegistry, Gauge

from services.chassis import alarms
from services.chassis.alarms import Alarm
from services.chassis.errors import Kind, ServiceError
from services.chassis.lag import BEHIND_S, LOOK_EVERY_S, STALE_S, Lag
from tests.virtual_time import in_virtual_time


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def gauge() -> tuple[Gauge, CollectorRegistry]:
    registry = CollectorRegistry()
    return Gauge("lag_seconds", "A lag.", registry=registry), registry


def test_lag_grows_between_looks() -> None:
    """Nobody processes anything and nobody looks: the metric grows all the same, at every scrape."""
    clock = Clock()
    shown, registry = gauge()
    Lag(shown, now_s=clock).found(3.0)
    assert registry.get_sample_value("lag_seconds") == 3.0
    clock.s += 20.0
    assert registry.get_sample_value("lag_seconds") == 23.0


def test_lag_is_gone_with_what_waited() -> None:
    """The next look that finds nothing ends it; the age of what was processed last is no lag."""
    clock = Clock()
    lag = Lag(gauge()[0], now_s=clock)
    lag.found(29.0)
    clock.s += 1.0
    lag.found(0.0)
    assert lag.seconds() == 0.0
    clock.s += STALE_S
    assert lag.seconds() == 0.0


def test_lag_grows_while_nobody_can_look() -> None:
    """Where the bus or the database does not answer, all that came since the last look may wait."""
    clock = Clock()
    lag = Lag(gauge()[0], now_s=clock)
    lag.found(0.0)
    clock.s += STALE_S + 7.0
    assert lag.seconds() == STALE_S + 7.0
    lag.found(0.0)
    assert lag.seconds() == 0.0


@in_virtual_time
async def test_who_is_behind_for_a_minute_is_an_alarm() -> None:
    """Also where nobody can look; the first look that finds nothing ends the alarm, and so does the end of the loop."""
    away = [True]

    async def look() -> float:
        if away[0]:
            raise ServiceError(Kind.UNAVAILABLE, "DOWN", "nobody answers")
        return 0.0

    loop = asyncio.get_running_loop()
    watching = asyncio.create_task(Lag(gauge()[0], now_s=loop.time).watch(look, alarm_as="relay"))
    await asyncio.sleep(BEHIND_S - LOOK_EVERY_S)
    assert Alarm.FACTS_WAIT not in alarms.standing()
    await asyncio.sleep(3 * LOOK_EVERY_S)
    assert Alarm.FACTS_WAIT in alarms.standing()
    away[0] = False
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert Alarm.FACTS_WAIT not in alarms.standing()
    away[0] = True
    await asyncio.sleep(BEHIND_S + 3 * LOOK_EVERY_S)
    assert Alarm.FACTS_WAIT in alarms.standing()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert Alarm.FACTS_WAIT not in alarms.standing()
