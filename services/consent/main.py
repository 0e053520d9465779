"""The consent process: settings and wiring."""

import asyncio
from pathlib import Path

from comity.consent.v1.consent_service_pb2_grpc import add_ConsentServiceServicer_to_server
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.access import PostgresAccessLog
from services.chassis.bus import NatsBus
from services.chassis.clock import SystemClock
from services.chassis.eventstore import PostgresEventStore
from services.chassis.lifecycle import App, run
from services.chassis.metrics import RELAY_LAG_S
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.postgres import create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect
from services.chassis.settings import ServiceSettings
from services.consent.clients import GrpcIdentityReader
from services.consent.handlers.ledger import ConsentHandlers
from services.consent.service import ConsentService
from services.consent.store.ledger import PostgresLedger
from services.consent.store.policies import PostgresPolicies
from services.consent.subscribers import Expiries

MIGRATIONS = Path(__file__).parent / "migrations"


class Settings(ServiceSettings):
    """What consent is told.

    Args:
        identity_address: of identity; it may be away.
        decide_budget_ms_max: longest budget of a Decide anywhere; a revocation waits for it before it returns.
        evaluate_timeout_ms: after which Postgres gives a consent read up; the caller then has no consent.
        write_timeout_ms: the same for every other statement.
        database_connections_max: of each of the two pools.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_CONSENT_")

    identity_address: str
    decide_budget_ms_max: float = Field(default=50.0, ge=0.0)
    evaluate_timeout_ms: int = Field(default=25, ge=1)
    write_timeout_ms: int = Field(default=2000, ge=1)
    database_connections_max: int = 8


async def build(settings: Settings, app: App) -> None:
    """Put the service together."""
    url, size = settings.database_url.get_secret_value(), settings.database_connections_max
    for folder in (CHASSIS, MIGRATIONS):
        await migrate(url, folder)
    pool = await create_pool(url, statement_timeout_ms=settings.write_timeout_ms, size=size, name="comity-consent")
    app.on_stop("postgres", pool.close)
    read_pool = await create_pool(
        url, statement_timeout_ms=settings.evaluate_timeout_ms, size=size, name="comity-consent-reads"
    )
    app.on_stop("postgres reads", read_pool.close)
    bus = await NatsBus.connect(settings.nats_url, name="comity-consent")
    app.on_stop("nats", bus.close)
    await bus.ensure_stream("consent")
    relay = Relay(pool, PostgresEventStore(pool), bus, "consent", on_lag=RELAY_LAG_S.labels("consent").set)
    app.background("relay", relay.run)
    app.background("reconciler", Reconciler(pool, bus, "consent").run)
    channel = connect(settings.identity_address)
    app.on_stop("identity", channel.close)
    clock = SystemClock()
    policies = PostgresPolicies(pool, clock)
    handlers = ConsentHandlers(
        PostgresLedger(pool, read_pool, policies),
        policies,
        GrpcIdentityReader(channel),
        PostgresAccessLog(pool, clock),
        clock,
        drain_s=settings.decide_budget_ms_max / 1000,
        pause=asyncio.sleep,
    )
    app.background("expiries", Expiries(pool, handlers).run)
    app.server.add(add_ConsentServiceServicer_to_server, ConsentService(handlers))


if __name__ == "__main__":
    run("consent", Settings, build)
