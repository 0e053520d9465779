"""Tracing of a process: exporters, head sampling, and the official instrumentations of gRPC, asyncpg and Redis."""

from services.chassis.settings import ServiceSettings
from services.chassis.tracing import *  # noqa: F403


class Telemetry:
    """A process's tracing."""

    def shutdown(self) -> None:
        """Export what has not been exported and stop."""
        raise NotImplementedError


def setup(service: str, settings: ServiceSettings) -> Telemetry:
    """Set up tracing for this process; call once, before the first channel or pool is made."""
    raise NotImplementedError
