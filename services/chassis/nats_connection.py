"""The connection to NATS: who lets us in, with which rights, and what is said where nobody does.

It is made again for ever, once it was there. What goes over it is chassis.bus's.
"""

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import nats
import structlog
from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport
from nats.js.errors import APIError, ServiceUnavailableError

from services.chassis.errors import Kind, ServiceError
from services.chassis.nats_files import NatsFiles
from services.chassis.refused import by_nats
from services.chassis.settings import addresses_in

CONNECT_TIMEOUT_S = 10.0
# So often each server may refuse us before the first connection is given up: who is refused twice is refused for good.
REFUSALS_MAX = 2
CLOSED_TIMEOUT_S = 0.5
RECONNECT_WAIT_S = 0.25
PING_INTERVAL_S = 5
API_TIMEOUT_S = 5.0

# Each stands for a right that services need; with no body none of it has an effect.
RIGHTS = (
    "$JS.API.STREAM.CREATE.EV_CHECK",
    "$JS.API.CONSUMER.DURABLE.CREATE.EV_CHECK.check",
    "$JS.API.CONSUMER.MSG.NEXT.EV_CHECK.check",
    "$JS.ACK.EV_CHECK.check.1.1.1.0.0",
    "ev.v1.0.check.Check",
)
ADDRESS_INVALID = (
    "NATS_URL: give every server as nats://host:port, with commas between them, and percent-encode what is special in "
    "a password."
)
JETSTREAM_OFF = "NATS has no JetStream for the account that NATS_URL names: switch it on."

_log = structlog.get_logger(__name__)


class _Errors:
    """What the client tells of its connection, logged once there was one, and the last refusal among it.

    Lost connections are told, not raised: the client connects again by itself.
    """

    def __init__(self, *, with_credentials: bool) -> None:
        self._with_credentials = with_credentials
        self.refusal: ServiceError | None = None
        self._refusals_left = 0
        self._bound: asyncio.Timeout | None = None
        # Whoever waits raises the refusal: it is not logged, too.
        self.is_raised = False

    def give_up_after(self, refusals: int, bound: asyncio.Timeout | None) -> None:
        """End the bound early when so many tries were refused; None: try for ever, as after the first connection."""
        self._refusals_left, self._bound = refusals, bound

    async def note(self, error: Exception) -> None:
        """The callback."""
        sentence = by_nats(error, with_credentials=self._with_credentials)
        if sentence is not None:
            self.refusal = _refused(sentence)
            self._refusals_left -= 1
            if self._bound is not None and self._refusals_left == 0:
                self._bound.reschedule(0.0)
        if self._bound is None and not self.is_raised:
            _log.warning("nats_error", cause=type(error).__name__, remedy=sentence)


class _Client(Client):
    """nats-py's client, mended.

    It would tell a server that offers no TLS the password although TLS was asked for; and after a handshake that
    failed, wait for ever for the end of a connection that is closed, and ask no server any more.
    """

    def __init__(self, errors: _Errors) -> None:
        super().__init__()
        self.errors = errors

    async def give_up(self) -> None:
        """Close what is half open where no connection came about."""
        with suppress(Exception):
            await self.close()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]

    async def _connect_to_server(self, s: Srv) -> None:
        await super()._connect_to_server(s)
        closed = TcpTransport.wait_closed

        async def wait_closed(transport: Any = self._transport) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSED_TIMEOUT_S):
                    await closed(transport)  # type: ignore[no-untyped-call]

        self._transport.wait_closed = wait_closed  # type: ignore[method-assign, union-attr]

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        wanted = "tls" in self.options or (self._current_server and self._current_server.uri.scheme == "tls")
        if initial_connection and wanted and not info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        await super()._process_info(info, initial_connection)


async def connect(
    url: str, *, name: str = "comity", files: NatsFiles | None = None, timeout_s: float = CONNECT_TIMEOUT_S
) -> _Client:
    """A client that is connected.

    Args:
        url: of the servers of one cluster, with commas between them.
        name: of the connection, for the server's own reports.
        files: certificates and credentials; a server is then asked nothing before it speaks TLS.

    Raises:
        ServiceError: UNAVAILABLE when no server let us in in time; where one said why not, with that.
    """
    files = files or NatsFiles()
    if wrong := files.problems():
        raise _refused(" ".join(f"{name.upper()} {problem}." for name, problem in wrong.items()))
    servers = addresses_in(url)
    if not all(map(_is_address, servers)):
        raise _refused(ADDRESS_INVALID)
    errors = _Errors(with_credentials=files.credentials is not None)
    client = _Client(errors)
    try:
        async with asyncio.timeout(timeout_s) as bound:
            errors.give_up_after(REFUSALS_MAX * len(servers), bound)
            await client.connect(
                servers,
                name=name,
                max_reconnect_attempts=-1,
                ping_interval=PING_INTERVAL_S,
                error_cb=errors.note,
                **{"reconnect_time_wait": RECONNECT_WAIT_S, **files.options()},
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await client.give_up()
        raise (errors.refusal or unavailable("connect")) from error
    finally:
        errors.give_up_after(0, None)
    return client


async def try_rights(client: _Client) -> None:
    """Ask for what services need: JetStream, streams, consumers, channels. Nothing is made or stored.

    Raises:
        ServiceError: UNAVAILABLE (BUS_REFUSED) when something of it is not allowed, or JetStream is off.
    """
    client.errors.is_raised = True
    try:
        for subject in RIGHTS:
            await client.publish(subject, b"")
        # Behind them in the same buffer, which a flush is not: what was refused has been told when it is answered.
        await client.jetstream(timeout=API_TIMEOUT_S).account_info()
    except (TimeoutError, OSError, nats.errors.Error) as error:
        off = isinstance(error, ServiceUnavailableError | APIError)
        raise (
            client.errors.refusal or (_refused(JETSTREAM_OFF) if off else unavailable("check the rights"))
        ) from error
    if client.errors.refusal is not None:
        raise client.errors.refusal


async def close(client: Client) -> None:
    """Hand over what is buffered and close the connection."""
    if client.is_closed:
        return
    try:
        async with asyncio.timeout(API_TIMEOUT_S):
            await client.drain()
    except (TimeoutError, OSError, nats.errors.Error):
        await client.close()


async def try_bus(url: str, files: NatsFiles) -> None:
    """Do what a service does: connect, and have the rights that it needs.

    Raises:
        ServiceError: UNAVAILABLE, with the setting to correct.
    """
    client = await connect(url, name="comity-check", files=files, timeout_s=API_TIMEOUT_S)
    try:
        await try_rights(client)
    finally:
        await close(client)


def unavailable(doing: str) -> ServiceError:
    """The outage of a bus that did not answer. *doing*: what was asked of it."""
    return ServiceError(
        Kind.UNAVAILABLE, "BUS_UNAVAILABLE", f"The message bus did not answer ({doing}). Try again.", retry_after_s=0.5
    )


def _is_address(url: str) -> bool:
    """Whether it has a scheme, a host and, if any, a port that is a number."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme and parts.hostname and parts.port != 0)
    except ValueError:
        return False


def _refused(sentence: str) -> ServiceError:
    return ServiceError(Kind.UNAVAILABLE, "BUS_REFUSED", sentence, retry_after_s=0.5)
