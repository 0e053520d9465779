"""The identity process: settings and wiring."""

from pathlib import Path

from comity.common.v1.holdings_pb2_grpc import add_HoldingsServiceServicer_to_server
from comity.identity.v1.identity_service_pb2_grpc import (
    add_IdentityServiceServicer_to_server,
    add_KeyServiceServicer_to_server,
)
from pydantic_settings import SettingsConfigDict

from services.chassis.access import PostgresAccessLog
from services.chassis.bus import NatsBus
from services.chassis.clock import SystemClock
from services.chassis.dead_letters import DeadLetters
from services.chassis.erasure_gate import ErasureGate, GrpcErasureLedger
from services.chassis.eventstore import PostgresEventStore
from services.chassis.holdings import HoldingsService
from services.chassis.lifecycle import App, run
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.postgres import create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect
from services.chassis.settings import ServiceSettings, read_secret
from services.identity.clients import GrpcConsentReader
from services.identity.handlers import IdentityHandlers, KeyHandlers
from services.identity.service import IdentityService, KeyService
from services.identity.store.holdings import IdentityHoldings
from services.identity.store.keys import PostgresKeys, Wrapping
from services.identity.store.links import PostgresLinks
from services.identity.store.placeholders import PostgresPlaceholders
from services.identity.store.secrets import require_same_secrets
from services.identity.store.subjects import PostgresSubjects

MIGRATIONS = Path(__file__).parent / "migrations"
STATEMENT_TIMEOUT_MS = 2000


class Settings(ServiceSettings):
    """What identity is told.

    Args:
        consent_address: of consent; it may be away, and nobody is linked then.
        pepper_file: key of every pseudonym; can never be changed.
        kek_file: key that wraps the data keys.
        holdout_salt: changing it draws the holdout anew.
        database_connections_max: of the pool.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_IDENTITY_")

    consent_address: str
    pepper_file: Path
    kek_file: Path
    holdout_salt: str = "holdout"
    database_connections_max: int = 8


async def build(settings: Settings, app: App) -> None:
    """Put the service together."""
    url = settings.database_url.get_secret_value()
    pepper, kek = read_secret(settings.pepper_file), read_secret(settings.kek_file)
    for folder in (CHASSIS, MIGRATIONS):
        await migrate(url, folder)
    pool = await create_pool(
        url, statement_timeout_ms=STATEMENT_TIMEOUT_MS, size=settings.database_connections_max, name="comity-identity"
    )
    app.on_stop("postgres", pool.close)
    await require_same_secrets(pool, {"pepper": pepper, "kek": kek})
    bus = await NatsBus.connect(settings.nats_url, files=settings.nats_files, name="comity-identity")
    app.on_stop("nats", bus.close)
    await bus.ensure_stream("identity")
    relay = Relay(pool, PostgresEventStore(pool), bus, "identity")
    letters = DeadLetters(pool)
    letters.retried_by("identity", "relay", relay.retry)
    app.keep(letters)
    app.background("relay", relay.run)
    app.background("relay's lag", relay.watch_lag)
    app.background("reconciler", Reconciler(pool, bus, "identity").run)
    # Never waited for: consent asks identity who somebody is, and each of the two has to start without the other.
    channel = connect(settings.consent_address)
    app.on_stop("consent", channel.close)
    clock = SystemClock()
    placeholders = PostgresPlaceholders(pool)
    await placeholders.load()
    app.background("placeholders", placeholders.run)
    accesses = PostgresAccessLog(pool, clock)
    handlers = IdentityHandlers(
        PostgresSubjects(pool),
        PostgresLinks(pool),
        GrpcConsentReader(channel),
        accesses,
        placeholders,
        clock,
        pepper=pepper,
        holdout_salt=settings.holdout_salt,
    )
    app.server.add(add_IdentityServiceServicer_to_server, IdentityService(handlers))
    keys = KeyHandlers(PostgresKeys(pool, Wrapping(kek), clock), accesses)
    app.server.add(add_KeyServiceServicer_to_server, KeyService(keys))
    holdings = HoldingsService(pool, IdentityHoldings(pool, clock), accesses)
    app.server.add(add_HoldingsServiceServicer_to_server, holdings)
    # Waits for consent where the database was restored, and only there.
    gate = ErasureGate(pool, holdings.erase, GrpcErasureLedger(channel))
    app.background("erasure ledger", gate.run)
    await gate.open()


if __name__ == "__main__":
    run("identity", Settings, build)
