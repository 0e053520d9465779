"""How old the oldest thing is that waits, told at the moment somebody asks: it grows while nobody works, or looks."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from prometheus_client import Gauge

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.errors import ServiceError

LOOK_EVERY_S = 1.0
# A look may be late on a busy machine. After this the last one tells nothing: all that came since may wait.
STALE_S = 5.0
# Longer than a restart or a roll-out takes, and soon enough that somebody can act before people notice.
BEHIND_S = 60.0

# What of this process is behind; each may stop being so while another goes on.
_behind: set[str] = set()


class Lag:
    """An age that a gauge shows at every scrape.

    Args:
        stale_s: for how long a look is good.
        now_s: a clock that never goes back.
    """

    def __init__(self, gauge: Gauge, *, stale_s: float = STALE_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._stale_s = stale_s
        self._now_s = now_s
        self._looked_s = now_s()
        self._oldest_s = math.inf
        gauge.set_function(self.seconds)

    def found(self, age_s: float) -> None:
        """Take what a look found: the age of what has waited longest; 0: nothing waits."""
        self._looked_s = self._now_s()
        self._oldest_s = self._looked_s - age_s if age_s > 0.0 else math.inf

    def seconds(self) -> float:
        """The age now; 0 where nothing waits."""
        now_s = self._now_s()
        is_stale = now_s - self._looked_s > self._stale_s
        return max(0.0, now_s - (min(self._oldest_s, self._looked_s) if is_stale else self._oldest_s))

    async def watch(self, look: Callable[[], Awaitable[float]], *, alarm_as: str = "") -> None:
        """Look once a second, for ever; a look that fails leaves the age to grow.

        Args:
            look: gives the age of what has waited longest, 0 where nothing does.
            alarm_as: name under which it is an alarm to be behind; empty: it is none.
        """
        try:
            while True:
                with suppress(ServiceError):
                    self.found(await look())
                _tell(alarm_as, is_behind=self.seconds() > BEHIND_S)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            _tell(alarm_as, is_behind=False)


def _tell(name: str, *, is_behind: bool) -> None:
    if not name:
        return
    (_behind.add if is_behind else _behind.discard)(name)
    set_alarm(Alarm.FACTS_WAIT, bool(_behind))
