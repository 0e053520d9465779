"""The gRPC server every service runs: guarded methods (chassis.rpc_guard), tracing, health, reflection, drain."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.chassis.metrics import RPC_SERVER_CALLS
from services.chassis.rpc_guard import Handler, guard, is_public
from services.chassis.rpc_places import Places
from services.chassis.settings import ServiceSettings
from services.chassis.telemetry import Telemetry

# The guard refuses what is too large for a method with an error that says so; to be told that, it has to come in.
# What is beyond even this gRPC refuses by itself, without reading it.
RECEIVE_BYTES_MAX = 4 * 1024 * 1024
# Headers of one call, names and values with 32 bytes each. gRPC refuses more by itself (chassis.status says which limit
# it was); between its own two limits of 8 and 16 KiB it would throw dice.
METADATA_BYTES_MAX = 16_384

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    # Clients look the address up again, so that new replicas get their share.
    ("grpc.max_connection_age_ms", 300_000),
    # Calls of an old connection end within this; what takes longer (ReplayEvents) is begun anew from where it was.
    ("grpc.max_connection_age_grace_ms", 30_000),
    # Calls of one connection; its client holds further ones back. Far above what one backend has under way.
    ("grpc.max_concurrent_streams", 256),
    # Counts calls that have ended and are not freed yet, and refuses at random what would fit.
    ("grpc.http.overload_protection", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients ping every 60 s; at the default of 300 s they would be sent away for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
)


class RpcServer:
    """A grpc.aio server: add servicers, then start it in the loop that it is to run in."""

    def __init__(self, settings: ServiceSettings, telemetry: Telemetry | None = None) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._services: dict[str, dict[str, Handler]] = {}
        self._places = Places(settings.concurrent_calls_max, of="this process")
        RPC_SERVER_CALLS.set_function(lambda: self._places.taken_count)
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []
        self._port = self._public_port = 0

    @property
    def port(self) -> int:
        """Port it listens on; 0 before start."""
        return self._port

    @property
    def public_port(self) -> int:
        """Port of the methods that backends may call; 0 before start, and where there is none."""
        return self._public_port

    def add(self, registrar: Callable[[Any, Any], None], servicer: Any) -> None:
        """Serve *servicer*: `add(add_ConsentServiceServicer_to_server, ConsentService(...))`.

        Raises:
            ValueError: a method is not asynchronous.
        """
        assert not self._servers, "the server has started"
        registrar(servicer, _Registry(self._services, self._places))

    async def start(self) -> int:
        """Start serving; the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._port = await self._listen(self._settings.listen, self._services, reflects=self._settings.reflection)
        if self._settings.public_listen:
            self._public_port = await self._listen(self._settings.public_listen, _public(self._services))
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self._port

    async def stop(self) -> None:
        """Not serving → drain_s → no new calls, those in flight have stop_grace_s to end. Again: nothing."""
        servers, self._servers = self._servers, []
        if not servers:
            return
        await self._health.enter_graceful_shutdown()
        # Balancers and clients look away before the first call is refused.
        await asyncio.sleep(self._settings.drain_s)
        await asyncio.gather(*(server.stop(self._settings.stop_grace_s) for server in servers))

    async def _listen(
        self, address: str, services: Mapping[str, Mapping[str, Handler]], *, reflects: bool = False
    ) -> int:
        server = self._build(services)
        if reflects:
            names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"{address} cannot be listened on; is it in use?") from error
        await server.start()
        self._servers.append(server)
        return port

    def _build(self, services: Mapping[str, Mapping[str, Handler]]) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=self._telemetry.server_interceptors() if self._telemetry is not None else (),
            options=(*_OPTIONS, ("grpc.so_reuseport", int(self._settings.reuse_port))),
        )
        for service, handlers in services.items():
            server.add_registered_method_handlers(service, handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server


def _public(services: Mapping[str, Mapping[str, Handler]]) -> dict[str, dict[str, Handler]]:
    """Of each service the methods that backends may call."""
    found = {
        service: {name: handler for name, handler in handlers.items() if is_public(service, name)}
        for service, handlers in services.items()
    }
    return {service: handlers for service, handlers in found.items() if handlers}


class _Registry:
    """Takes the place of a server while generated code registers a servicer, and guards what it is given."""

    def __init__(self, services: dict[str, dict[str, Handler]], places: Places) -> None:
        self._services = services
        self._places = places

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code registers twice; this one hides the methods it is about."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Guard the service's methods."""
        guarded = ((name, guard(service, name, handler, self._places)) for name, handler in handlers.items())
        self._services[service] = {name: handler for name, handler in guarded if handler is not None}
