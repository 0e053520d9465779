"""NATS JetStream as a ports.Bus: durable, ordered channels that reconnect for ever.

A channel is `ev.v1.<partition>.<service>.<TypeName>`; the stream of a service holds all of its channels.
"""

from collections.abc import AsyncIterator, Mapping

from services.chassis.ports import Delivery


def stream_of(service: str) -> str:
    """Name of a service's stream."""
    return f"EV_{service.upper()}"


class NatsBus:
    """ports.Bus over JetStream; made by `await NatsBus.connect(url)`."""

    @classmethod
    async def connect(cls, url: str, *, name: str = "comity", ack_wait_s: float = 5.0) -> "NatsBus":
        """A connected bus.

        Raises:
            ServiceError: UNAVAILABLE when no server answered in time.
        """
        raise NotImplementedError

    async def ensure_stream(self, service: str) -> None:
        """Create the service's stream, or bring its limits up to date; publishers and consumers both may call it."""
        raise NotImplementedError

    async def publish(self, channel: str, payload: bytes, *, message_id: str, headers: Mapping[str, str]) -> None:
        """See ports.Bus.

        Raises:
            ServiceError: also INVALID (MESSAGE_TOO_LARGE) when it can never be stored.
        """
        raise NotImplementedError

    def consume(self, channels: str, *, durable: str) -> AsyncIterator[Delivery]:
        """See ports.Bus."""
        raise NotImplementedError

    async def close(self) -> None:
        """Hand over what is buffered and close the connection."""
        raise NotImplementedError
