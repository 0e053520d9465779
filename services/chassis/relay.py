"""Publishes a service's log, in commit order, on its channels: the log is the outbox."""

from collections.abc import Callable

from services.chassis.ports import Bus, EventStore
from services.chassis.postgres import Pool


class Relay:
    """One leader among the service's processes tails the log and publishes it, page by page.

    Args:
        pool: of the service's database; one connection is held for the leader's lock and the checkpoint.
        store: the log.
        bus: where to.
        service: name in the channel, e.g. "consent".
        on_lag: told, about once a second, the age in seconds of the oldest event not yet published.
    """

    def __init__(
        self, pool: Pool, store: EventStore, bus: Bus, service: str, *, on_lag: Callable[[float], None] | None = None
    ) -> None:
        raise NotImplementedError

    def wake(self) -> None:
        """Something was appended: look now and not at the next poll."""
        raise NotImplementedError

    async def run(self) -> None:
        """Relay until cancelled; outages are waited out."""
        raise NotImplementedError
