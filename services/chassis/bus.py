"""NATS JetStream as a ports.Bus: durable, ordered channels over a chassis.nats_connection.

A channel is `ev.v1.<partition>.<service>.<TypeName>`; the stream of a service holds all of its channels. Streams are
transport, not the record: what they lose is published again (chassis.reconciler).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import api as js
from nats.js.errors import APIError, FetchTimeoutError, NoStreamResponseError, NotFoundError

from services.chassis import nats_connection
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.nats_connection import API_TIMEOUT_S, unavailable
from services.chassis.nats_files import NatsFiles
from services.chassis.ports import Delivery, Message

STREAM_AGE_S = 7 * 24 * 3600
# NATS' own limit for a message with its headers (max_payload); larger events are refused by the log.
MESSAGE_BYTES_MAX = 2**20
DUPLICATE_WINDOW_S = 600.0

PUBLISH_TIMEOUT_S = 2.0
PUBLISH_ATTEMPTS = 2

# A message whose consumer died is delivered again after this. Living consumers say so three times as often, which is
# why it can be short without doubling slow work.
ACK_WAIT_S = 5.0
# Redeliveries are not counted out: a poison event never comes back (chassis.inbox puts it aside at its first
# delivery), so a limit would only lose facts in a long outage.
DELIVERIES_MAX = -1

# One pull waits this long. The server must show a sign of life in between; without one the subscription is rebuilt.
FETCH_S = 3.0
HEARTBEAT_S = 0.5
REBUILD_PAUSE_S = 0.2
SCAN_BATCH = 256

MESSAGE_ID = js.Header.MSG_ID.value
TOO_LARGE_CODE = 10054

_log = structlog.get_logger(__name__)


def stream_of(service: str) -> str:
    """Name of a service's stream."""
    return f"EV_{service.upper()}"


def channels_of(service: str) -> str:
    """All channels of a service."""
    return f"ev.v1.*.{service}.>"


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream holds, for those who know what it should."""

    created: str
    first_seq: int
    last_seq: int
    deleted_count: int
    first_at: datetime


class NatsBus:
    """ports.Bus over JetStream; made by `await NatsBus.connect(url)`."""

    def __init__(self, client: Client, *, ack_wait_s: float) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=API_TIMEOUT_S)
        self._ack_wait_s = ack_wait_s

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str = "comity",
        files: NatsFiles | None = None,
        ack_wait_s: float = ACK_WAIT_S,
        timeout_s: float = nats_connection.CONNECT_TIMEOUT_S,
    ) -> "NatsBus":
        """A connected bus: see nats_connection.connect.

        Args:
            ack_wait_s: after which a message whose consumer died is delivered again.
        """
        client = await nats_connection.connect(url, name=name, files=files, timeout_s=timeout_s)
        return cls(client, ack_wait_s=ack_wait_s)

    async def ensure_stream(self, service: str) -> None:
        """Create the service's stream, or bring its limits up to date; publishers and consumers both may call it."""
        config = js.StreamConfig(
            name=stream_of(service),
            subjects=[channels_of(service)],
            storage=js.StorageType.FILE,
            retention=js.RetentionPolicy.LIMITS,
            discard=js.DiscardPolicy.NEW,
            max_age=STREAM_AGE_S,
            max_msg_size=MESSAGE_BYTES_MAX,
            duplicate_window=DUPLICATE_WINDOW_S,
        )
        with _outages("ensure the stream"):
            try:
                current = (await self._jetstream.stream_info(stream_of(service))).config
            except NotFoundError:
                await self._jetstream.add_stream(config)
                return
            # Replicas are the operator's choice, and stay.
            wanted = config.evolve(num_replicas=current.num_replicas)
            if _limits(current) != _limits(wanted):
                await self._jetstream.update_stream(wanted)

    async def publish(self, channel: str, payload: bytes, *, message_id: str, headers: Mapping[str, str]) -> None:
        """See ports.Bus.

        Raises:
            ServiceError: also INVALID (MESSAGE_TOO_LARGE) when it can never be stored.
        """
        sent = {**headers, MESSAGE_ID: message_id}
        if len(payload) + _header_bytes(sent) > min(MESSAGE_BYTES_MAX, self._client.max_payload):
            # The client looks at the payload alone, and the server answers what is too long by hanging up.
            raise _too_large()
        with _outages("publish"):
            for attempt in range(PUBLISH_ATTEMPTS):
                try:
                    await self._jetstream.publish(channel, payload, timeout=PUBLISH_TIMEOUT_S, headers=dict(sent))
                    return
                except NoStreamResponseError:
                    # Nobody made the stream yet, or somebody removed it.
                    await self.ensure_stream(_service_in(channel))
                    if attempt + 1 == PUBLISH_ATTEMPTS:
                        raise
                except nats.errors.TimeoutError:
                    # It may have been stored; the id makes the second try harmless.
                    if attempt + 1 == PUBLISH_ATTEMPTS:
                        raise

    async def consume(self, channels: str, *, durable: str) -> AsyncGenerator[Delivery, None]:
        """See ports.Bus. Outages are waited out in here; a subscription that falls silent is rebuilt."""
        while True:
            _heed_cancellation()
            subscription: JetStreamContext.PullSubscription | None = None
            try:
                subscription = await self._subscribe(channels, durable)
                async with aclosing(self._deliveries(subscription)) as deliveries:
                    async for delivery in deliveries:
                        yield delivery
            except (TimeoutError, OSError, nats.errors.Error, ServiceError) as error:
                if self._client.is_closed:
                    return
                _log.warning("subscription_rebuilt", channels=channels, durable=durable, cause=type(error).__name__)
            finally:
                if subscription is not None:
                    with suppress(nats.errors.Error):
                        await subscription.unsubscribe()
            await asyncio.sleep(REBUILD_PAUSE_S)

    async def oldest_age_s(self, channels: str, *, durable: str) -> float:
        """See ports.Bus."""
        stream = stream_of(_service_in(channels))
        with _outages("look at the consumer"):
            consumer = await self._jetstream.consumer_info(stream, durable)
            if not consumer.num_pending and not consumer.num_ack_pending:
                return 0.0
            behind = 0 if consumer.ack_floor is None else consumer.ack_floor.stream_seq
            try:
                oldest = await self._jetstream.get_msg(stream, behind + 1, subject=channels, next=True)
            except NotFoundError:
                return 0.0  # It was acknowledged, or aged out, in between.
        assert oldest.time is not None, "the server tells when it stored a message"
        return max(0.0, (datetime.now(UTC) - oldest.time).total_seconds())

    async def stream_state(self, service: str) -> StreamState:
        """What the service's stream holds now.

        Raises:
            ServiceError: NOT_FOUND (NO_STREAM), UNAVAILABLE.
        """
        with _outages("read the stream's state"):
            # Not stream_info: it leaves the time of the first message out.
            answer = await self._client.request(f"$JS.API.STREAM.INFO.{stream_of(service)}", timeout=API_TIMEOUT_S)
        info = json.loads(answer.data)
        if "error" in info:
            raise ServiceError(Kind.NOT_FOUND, "NO_STREAM", "The service has no stream.")
        state = info["state"]
        return StreamState(
            created=info["created"],
            first_seq=state["first_seq"],
            last_seq=state["last_seq"],
            deleted_count=state.get("num_deleted", 0),
            first_at=datetime.fromisoformat(state["first_ts"][:19]).replace(tzinfo=UTC),
        )

    async def stored(self, service: str, *, since: datetime, until: datetime) -> AsyncGenerator[Message, None]:
        """What the stream holds of the messages stored between two times, in order.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        config = js.ConsumerConfig(
            ack_policy=js.AckPolicy.NONE,
            deliver_policy=js.DeliverPolicy.BY_START_TIME,
            opt_start_time=since,
            inactive_threshold=30.0,
            mem_storage=True,
            num_replicas=1,
        )
        with _outages("read the stream"):
            stream = stream_of(service)
            subscription = await self._jetstream.pull_subscribe(channels_of(service), stream=stream, config=config)
            try:
                waiting = (await subscription.consumer_info()).num_pending or 0
                while waiting > 0:
                    for msg in await subscription.fetch(SCAN_BATCH, timeout=API_TIMEOUT_S):
                        if msg.metadata.timestamp > until:
                            return
                        waiting = msg.metadata.num_pending
                        yield _message(msg)
            finally:
                await subscription.unsubscribe()

    async def close(self) -> None:
        """Hand over what is buffered and close the connection."""
        await nats_connection.close(self._client)

    async def _subscribe(self, channels: str, durable: str) -> JetStreamContext.PullSubscription:
        service = _service_in(channels)
        await self.ensure_stream(service)
        config = js.ConsumerConfig(
            durable_name=durable,
            filter_subject=channels,
            deliver_policy=js.DeliverPolicy.ALL,
            ack_policy=js.AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait_s,
            max_deliver=DELIVERIES_MAX,
            # One at a time: a message that waits for its retry holds those behind it.
            max_ack_pending=1,
        )
        # Creates the consumer, or brings an older one's limits up to date.
        await self._jetstream.add_consumer(stream_of(service), config)
        return await self._jetstream.pull_subscribe_bind(consumer=durable, stream=stream_of(service))

    async def _deliveries(self, subscription: JetStreamContext.PullSubscription) -> AsyncGenerator[Delivery, None]:
        """Deliveries until the server is silent for the length of a pull."""
        while True:
            _heed_cancellation()
            try:
                msg = (await subscription.fetch(1, timeout=FETCH_S, heartbeat=HEARTBEAT_S))[0]
            except FetchTimeoutError:
                continue  # There were signs of life, and no message.
            delivery = _NatsDelivery(msg)
            alive = asyncio.create_task(self._keep_alive(msg))
            try:
                yield delivery
            finally:
                alive.cancel()

    async def _keep_alive(self, msg: Msg) -> None:
        """Tell the server that the message is being worked on, until cancelled."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            with suppress(nats.errors.Error):
                await msg.in_progress()


class _NatsDelivery:
    """ports.Delivery of a JetStream message."""

    __slots__ = ("_msg", "message")

    def __init__(self, msg: Msg) -> None:
        self._msg = msg
        self.message = _message(msg)

    async def ack(self) -> None:
        """See ports.Delivery. A lost acknowledgement means another delivery, which the inbox makes harmless."""
        with _outages("acknowledge"):
            await self._msg.ack()

    async def retry(self, *, delay_s: float) -> None:
        """See ports.Delivery."""
        with _outages("ask for a retry"):
            await self._msg.nak(delay=delay_s)


def _message(msg: Msg) -> Message:
    return Message(
        channel=msg.subject,
        payload=msg.data,
        headers={name: value for name, value in (msg.headers or {}).items() if name != MESSAGE_ID},
        deliveries_count=msg.metadata.num_delivered,
    )


def _header_bytes(headers: Mapping[str, str]) -> int:
    """Length of the headers on the wire: `NATS/1.0`, a line each, an empty line."""
    return 12 + sum(len(name) + len(value) + 4 for name, value in headers.items())


def _service_in(channels: str) -> str:
    """The service that a channel, or a pattern of channels, belongs to."""
    tokens = channels.split(".")
    assert len(tokens) >= 5, "a channel is ev.v1.<partition>.<service>.<TypeName>"
    assert tokens[3] not in ("*", ">"), "a consumer takes one service's channels"
    return tokens[3]


def _limits(config: js.StreamConfig) -> tuple[object, ...]:
    return (
        config.subjects,
        config.discard,
        config.max_age,
        config.max_msg_size,
        config.duplicate_window,
    )


@contextmanager
def _outages(doing: str) -> Iterator[None]:
    """NATS errors of the block in our words; a cancellation that NATS forgot is raised."""
    try:
        yield
        _heed_cancellation()
    except nats.errors.MaxPayloadError as error:
        raise _too_large() from error
    except APIError as error:
        raise (_too_large() if error.err_code == TOO_LARGE_CODE else unavailable(doing)) from error
    except (TimeoutError, OSError, nats.errors.Error) as error:
        raise unavailable(doing) from error


def _heed_cancellation() -> None:
    """Raise the cancellation of the current task, if it has one that was not raised.

    nats-py waits with asyncio.wait_for. Up to Python 3.11 that forgets a cancellation which comes in the same turn as
    the answer: a loop that publishes would go on for ever, and its process would not end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _too_large() -> ServiceError:
    return invalid("payload", f"a message may hold {MESSAGE_BYTES_MAX} bytes", reason="MESSAGE_TOO_LARGE")
