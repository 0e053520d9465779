"""Time that passes only when everybody waits: a test of deadlines and windows neither waits nor depends on the machine.

Not for what computes in threads or asks real servers: while they work, the loop waits for nothing else and time jumps.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting it lets the loop's time jump ahead by as much."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is not None and timeout > 0:
            self.now_s += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop in which no test ever waits, and timers fire in exact order."""

    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """What the coroutine gives, run in such a loop."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run this test in such a loop."""

    @functools.wraps(test)
    def run_test(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return run_test
