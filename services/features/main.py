"""The features process: settings and wiring."""

from functools import partial
from pathlib import Path

from comity.common.v1.holdings_pb2_grpc import add_HoldingsServiceServicer_to_server
from comity.features.v1.features_service_pb2_grpc import add_FeatureServiceServicer_to_server
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.access import PostgresAccessLog
from services.chassis.bus import NatsBus
from services.chassis.cache import RedisCache
from services.chassis.clock import SystemClock
from services.chassis.dead_letters import DeadLetters, retry_rows
from services.chassis.erasure_gate import ErasureGate, GrpcErasureLedger
from services.chassis.eventstore import PostgresEventStore
from services.chassis.holdings import HoldingsService
from services.chassis.inbox import Subscription
from services.chassis.key_client import GrpcKeyReader
from services.chassis.lifecycle import App, run
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.postgres import create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect
from services.chassis.sealing import Sealer
from services.chassis.settings import ServiceSettings
from services.features.clients import FeedbackLog
from services.features.domain.requests import Source
from services.features.handlers import AwaitFolded, ItemColumns, ReadFeatures, Settled, keep_fresh
from services.features.service import FeatureService
from services.features.store import CONSUMER, Books, ItemStore, MemberStates
from services.features.store.holdings import FeaturesHoldings
from services.features.subscribers import BehaviorIntake, CatalogIntake
from services.features.wire import CATALOG_CHANGED

MIGRATIONS = Path(__file__).parent / "migrations"


class Settings(ServiceSettings):
    """What the features process is told.

    Args:
        identity_address: host:port of identity, for data keys.
        feedback_address: host:port of feedback: what erased members did is subtracted from the counts of items.
        consent_address: host:port of consent, which has the erasure ledger.
        redis_url: of Redis or Valkey, for states: Postgres is the record, and answers what the cache does not.
        columns_every_ms: how often item columns are brought up to date.
        pool_size: most connections to Postgres.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_FEATURES_")

    identity_address: str
    feedback_address: str
    consent_address: str
    redis_url: str = Field(pattern="^(rediss?|unix)://")
    columns_every_ms: int = Field(default=250, ge=10, le=10_000)
    pool_size: int = Field(default=8, ge=5, le=64)


async def build(settings: Settings, app: App) -> None:
    """Wire the process; what is opened first is closed last."""
    url = settings.database_url.get_secret_value()
    for folder in (CHASSIS, MIGRATIONS):
        await migrate(url, folder)
    pool = await create_pool(url, size=settings.pool_size, name="comity-features")
    app.on_stop("postgres", pool.close)
    cache = RedisCache(settings.redis_url, prefix="features:")
    app.on_stop("cache", cache.close)
    await cache.open()
    bus = await NatsBus.connect(settings.nats_url, files=settings.nats_files, name="comity-features")
    app.on_stop("nats", bus.close)
    # Services start in any order: those that emit may not have been here yet.
    for service in ("features", *Source):
        await bus.ensure_stream(service)
    identity = connect(settings.identity_address)
    app.on_stop("identity", identity.close)
    feedback = connect(settings.feedback_address)
    app.on_stop("feedback", feedback.close)

    clock, settled = SystemClock(), {source: Settled() for source in Source}
    books, states = Books(pool, clock), MemberStates(pool, cache)
    app.on_stop("states", states.close)
    await books.refresh()
    await states.refresh()
    items = ItemStore(pool)
    columns = ItemColumns(books, items)
    sealer = Sealer(GrpcKeyReader(identity, "features"))
    behavior = BehaviorIntake(books, sealer, states, settled[Source.FEEDBACK], clock)
    catalog = CatalogIntake(pool, books, states, settled[Source.DECISION])
    intakes = {
        Source.FEEDBACK: Subscription(pool, bus, Source.FEEDBACK, CONSUMER, behavior.handle, behavior.after_commit),
        # Decisions are many, and nothing of them is needed here.
        Source.DECISION: Subscription(
            pool, bus, Source.DECISION, CONSUMER, catalog.handle, catalog.after_commit, only=CATALOG_CHANGED
        ),
    }
    relay = Relay(pool, PostgresEventStore(pool), bus, "features")
    letters = DeadLetters(pool)
    letters.retried_by("features", "relay", relay.retry)
    for source, intake in intakes.items():
        letters.retried_by(source, CONSUMER, intake.retry)
    letters.retried_by("features", "item columns", retry_rows(columns.refresh_unread, items.items, items.blocks))
    letters.retried_by("features", "feature sets", retry_rows(books.refresh, books.rows))
    app.keep(letters)
    app.background("relay", relay.run)
    app.background("relay's lag", relay.watch_lag)
    app.background("reconciler", Reconciler(pool, bus, "features").run)
    for source, intake in intakes.items():
        app.background(f"{source} events", intake.run)
        app.background(f"{source} events' lag", intake.watch_lag)
    app.background("pending items", catalog.forget)
    app.background("item columns", partial(keep_fresh, columns, states, settings.columns_every_ms / 1000))
    app.server.add(
        add_FeatureServiceServicer_to_server,
        FeatureService(
            books=books,
            read=ReadFeatures(books, states, columns),
            columns=columns,
            await_folded=AwaitFolded(intakes, columns, states, settled),
        ),
    )
    held = FeaturesHoldings(pool, cache, books, sealer, FeedbackLog(feedback))
    holdings = HoldingsService(pool, held, PostgresAccessLog(pool, clock), forget=sealer.forget)
    app.server.add(add_HoldingsServiceServicer_to_server, holdings)
    consent = connect(settings.consent_address)
    app.on_stop("consent", consent.close)
    gate = ErasureGate(pool, holdings.erase, GrpcErasureLedger(consent))
    app.background("erasure ledger", gate.run)
    await gate.open()


if __name__ == "__main__":
    run("features", Settings, build)
