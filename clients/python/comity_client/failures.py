"""What is told of calls that came to nothing: counters, a hook, and one warning a minute in the log."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from comity_client.reasons import PeopleReason
from comity_client.transport import Outcome

WARNING_PAUSE_S = 60.0
_OF_PEOPLE = frozenset(one.value for one in PeopleReason)

_log = logging.getLogger("comity_client")


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that came to nothing.

    Args:
        method: Decide, Track, Link, Record, Revoke or History.
        reason: a FallbackReason that begins with CLIENT.
        cause: for people; holds nothing of the request.
    """

    method: str
    reason: str
    cause: str


class Failures:
    """Counts how calls end, and tells of those that came to nothing.

    Args:
        hook: called in the event loop with each; what it raises is told with the next warning.
        now_s: a clock that never goes back.
    """

    def __init__(self, hook: Callable[[Failure], None] | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._hook = hook
        self._now_s = now_s
        self._untold: Counter[tuple[str, str]] = Counter()
        self._quiet_until_s = float("-inf")

    def ended(self, method: str, outcome: Outcome, *, is_sound: bool = True) -> None:
        """Take note of a call; a refusal because of the person is an answer like another.

        Args:
            is_sound: whether the answer, where there is one, could be used.
        """
        refusal = outcome.refusal
        is_answer = refusal is not None and not outcome.is_mistake and refusal.reason in _OF_PEOPLE
        reason = "" if is_answer else outcome.why or ("" if is_sound else "CLIENT_INVALID_ANSWER")
        self.counts[method, reason] += 1
        if not reason:
            return
        cause = outcome.cause or "the answer is not one to this request: is the service of another release?"
        if self._hook is not None:
            try:
                self._hook(Failure(method, reason, cause))
            except Exception as error:  # a page must not break because of a counter
                cause += f"; and on_failure raised {type(error).__name__}"
        self._untold[method, reason] += 1
        self._warn(method, cause)

    def _warn(self, method: str, cause: str) -> None:
        now_s = self._now_s()
        if now_s < self._quiet_until_s:
            return
        self._quiet_until_s = now_s + WARNING_PAUSE_S
        untold, self._untold = self._untold, Counter()
        each = ", ".join(f"{called} {reason}: {count}" for (called, reason), count in untold.items())
        _log.warning(
            "calls to Comity that got no answer since the last warning: %s; the last, %s: %s", each, method, cause
        )
