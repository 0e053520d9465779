"""Finds what a service's stream lost and publishes it again; the log is the record, the stream only carries it."""

from services.chassis.bus import NatsBus
from services.chassis.postgres import Pool


class Reconciler:
    """Compares log and stream: at the start, whenever the stream looks shorter than it should, and every interval.

    Args:
        pool: of the service's database.
        bus: its JetStream.
        service: name in the channel.
        interval_s: between two comparisons.
    """

    def __init__(self, pool: Pool, bus: NatsBus, service: str, *, interval_s: float = 60.0) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Reconcile until cancelled; outages are waited out."""
        raise NotImplementedError

    async def reconcile(self) -> int:
        """Compare once, over all that the stream should hold; how many events were published again."""
        raise NotImplementedError
