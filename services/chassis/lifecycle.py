"""How a service process begins, lives and ends: settings, logs, background loops, drain in order.

A whole `services/<name>/main.py`:

    class Settings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="COMITY_IDENTITY_")
        pepper_file: Path


    async def build(settings: Settings, app: App) -> None:
        pool = await create_pool(settings.database_url.get_secret_value(), statement_timeout_ms=2000, size=8)
        app.on_stop("postgres", pool.close)
        await migrate(settings.database_url.get_secret_value(), MIGRATIONS)
        bus = await connect_bus(settings.nats_url)
        app.on_stop("nats", bus.close)
        store = PostgresEventStore(pool)
        app.on_stop("event log", store.close)
        app.background("relay", Relay(store, bus, ...).run)
        app.server.add(add_IdentityServiceServicer_to_server, IdentityService(...))


    if __name__ == "__main__":
        run("identity", Settings, build)

`build` runs before the service is reachable. What it gives to `on_stop` is closed in reverse order, after the server
has drained and the background loops have been cancelled: so open pools first, then the bus, then what writes to them.
"""

from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from services.chassis.telemetry import Telemetry

S = TypeVar("S", bound=ServiceSettings)


class App:
    """A service being built and run.

    Args:
        server: add servicers to it.
        telemetry: of the process.
    """

    server: RpcServer
    telemetry: Telemetry

    def on_stop(self, name: str, close: Callable[[], Awaitable[object]]) -> None:
        """Close this on the way down; what was registered last is closed first."""
        raise NotImplementedError

    def background(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run this loop from the moment the service is reachable until it drains; a crash starts it again, with backoff."""
        raise NotImplementedError


def run(service: str, settings_class: type[S], build: Callable[[S, App], Awaitable[None]]) -> NoReturn:
    """Run the service until SIGTERM or SIGINT, then exit the process; `--check` only validates the settings."""
    raise NotImplementedError
