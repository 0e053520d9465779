"""How many calls run at once: of a process, of one method, over one connection. What finds no place is refused at once.

Health is answered outside of all this: an orchestrator must not restart a process because it is busy.
"""

from collections import Counter
from types import TracebackType

from services.chassis.errors import Kind, ServiceError

# Long enough for calls to have ended meanwhile, short enough for whoever waits for one.
RETRY_AFTER_S = 0.5


class Places:
    """Places for calls.

    Args:
        count_max: calls at once. Over one connection half of them, so that no caller takes all.
        of: what the calls are of, for people.
    """

    def __init__(self, count_max: int, *, of: str) -> None:
        self.taken_count = 0
        self._count_max = count_max
        self._peer_max = max(1, count_max // 2)
        self._of = of
        self._of_peers: Counter[str] = Counter()

    def take(self, peer: str = "") -> None:
        """Take a place.

        Args:
            peer: the connection; empty: it is not counted by connection.

        Raises:
            ServiceError: EXHAUSTED (TOO_MANY_CALLS).
        """
        if self.taken_count >= self._count_max:
            raise _too_many(self._count_max, f"{self._of} run")
        if peer:
            if self._of_peers[peer] >= self._peer_max:
                raise _too_many(self._peer_max, f"{self._of} run over this connection")
            self._of_peers[peer] += 1
        self.taken_count += 1

    def give_back(self, peer: str = "") -> None:
        """Give a place back that was taken for this peer."""
        self.taken_count -= 1
        if peer:
            self._of_peers[peer] -= 1
            if not self._of_peers[peer]:
                # Connections come and go: what is kept must not grow with them.
                del self._of_peers[peer]


class Held:
    """A place among all calls, and one among those of the method where it has its own; a class because it is cheap."""

    __slots__ = ("_all", "_own", "_peer")

    def __init__(self, every: Places, own: Places | None, peer: str) -> None:
        self._all = every
        self._own = own
        self._peer = peer

    def __enter__(self) -> None:
        self._all.take()
        if self._own is not None:
            try:
                self._own.take(self._peer)
            except ServiceError:
                self._all.give_back()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.give_back()
        if self._own is not None:
            self._own.give_back(self._peer)


def _too_many(count: int, what: str) -> ServiceError:
    message = f"{count:,} calls of {what} already, and no more may; try again when some have ended"
    return ServiceError(Kind.EXHAUSTED, "TOO_MANY_CALLS", message, retry_after_s=RETRY_AFTER_S)
