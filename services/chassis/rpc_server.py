"""The gRPC server every service runs: declared limits, deadlines, typed errors, health, reflection, drain."""

from collections.abc import Callable
from typing import Any

from services.chassis.settings import ServiceSettings
from services.chassis.telemetry import Telemetry


class RpcServer:
    """A grpc.aio server; add servicers, then start."""

    def __init__(self, settings: ServiceSettings, telemetry: Telemetry | None = None) -> None:
        self._settings = settings

    @property
    def port(self) -> int:
        """Port it listens on; 0 before start."""
        raise NotImplementedError

    def add(self, registrar: Callable[[Any, Any], None], servicer: Any) -> None:
        """Serve *servicer*: `add(add_ConsentServiceServicer_to_server, ConsentService(...))`."""
        raise NotImplementedError

    async def start(self) -> int:
        """Start serving; the port."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Not serving → drain_s → no new calls, those in flight have stop_grace_s to end."""
        raise NotImplementedError
