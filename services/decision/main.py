"""The decision process: settings and wiring."""

from contextlib import suppress
from pathlib import Path

import grpc
from comity.common.v1.holdings_pb2_grpc import add_HoldingsServiceServicer_to_server
from comity.decision.v1 import decision_service_pb2_grpc as pb_grpc
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.access import PostgresAccessLog
from services.chassis.bus import NatsBus
from services.chassis.clock import SystemClock
from services.chassis.dead_letters import DeadLetters, retry_rows
from services.chassis.erasure_gate import ErasureGate, GrpcErasureLedger
from services.chassis.errors import ServiceError
from services.chassis.eventstore import PostgresEventStore
from services.chassis.gather import Load
from services.chassis.holdings import HoldingsService
from services.chassis.key_client import GrpcKeyReader
from services.chassis.lifecycle import App, run
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.postgres import Pool, create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect, warm
from services.chassis.sealing import Sealer
from services.chassis.settings import ServiceSettings, read_secret
from services.chassis.signing import public_keys_of
from services.decision.clients import ConsentClient, FeaturesClient, IdentityClient
from services.decision.handlers.catalog import ApplySite, DescribeSite, ListItems, UpsertItems
from services.decision.handlers.corrections import Corrections
from services.decision.handlers.decide import Decide
from services.decision.handlers.draft import Drafting, Keys
from services.decision.handlers.inspect import InspectDecisions
from services.decision.handlers.past import RecordDecisions
from services.decision.handlers.people import People
from services.decision.handlers.rankers import Rankers, Vetting
from services.decision.handlers.refresh import Refresher
from services.decision.handlers.releases import ActivateModel, GetModel, ListModels, RegisterModel
from services.decision.handlers.scoring import Scoring
from services.decision.ranker import OnnxLoader
from services.decision.service import CatalogService, DecisionService, ReleaseService
from services.decision.store import (
    DecisionHoldings,
    PostgresCatalog,
    PostgresModels,
    PostgresSites,
    PostgresStanding,
    SealedDecisionLog,
)

MIGRATIONS = Path(__file__).parent / "migrations"


class Settings(ServiceSettings):
    """What the decision process is told.

    Args:
        identity_address: host:port of identity.
        consent_address: host:port of consent.
        features_address: host:port of features.
        seed_key_file: the key that draws and decision ids are derived with; a new one ends replays of old decisions.
        token_key_file: the key that exposure tokens are signed with; feedback has the same.
        model_public_key_file: keys that models may be signed with, 64 hex digits a line as `comity models key` prints
            them; without it no model is taken in, and only those are served that were kept before models were signed.
            Old keys stay for as long as decisions of their models are replayed.
        budget_ms_max: most time of a Decide, whatever the caller would wait. Consent's Revoke must wait as long, and
            is asked whether it does: where it does not, no profile is used.
        inline_cost_us: scoring estimated above this goes to a thread, and so does a model that took far longer once.
        offered_max: most candidates of a request that names none; each is scored, so a Decide takes longer with more.
        pool_size: most connections to Postgres.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_DECISION_")

    identity_address: str
    consent_address: str
    features_address: str
    seed_key_file: Path
    token_key_file: Path
    model_public_key_file: Path = Path()
    budget_ms_max: int = Field(default=50, ge=5, le=1000)
    inline_cost_us: int = Field(default=500, ge=0, le=10_000)
    offered_max: int = Field(default=200, ge=1, le=1000)
    pool_size: int = Field(default=8, ge=2, le=64)


async def build(settings: Settings, app: App) -> None:
    """Wire the process; what is opened first is closed last."""
    url = settings.database_url.get_secret_value()
    await migrate(url, CHASSIS)
    await migrate(url, MIGRATIONS)
    pool = await create_pool(url, size=settings.pool_size, name="decision")
    app.on_stop("postgres", pool.close)
    bus = await NatsBus.connect(settings.nats_url, files=settings.nats_files, name="decision")
    app.on_stop("bus", bus.close)
    store = PostgresEventStore(pool, on_commit=lambda: relay.wake())
    app.on_stop("event log", store.drain)
    relay = Relay(pool, store, bus, "decision")
    letters = DeadLetters(pool)
    letters.retried_by("decision", "relay", relay.retry)
    app.keep(letters)
    app.background("relay", relay.run)
    app.background("relay's lag", relay.watch_lag)
    app.background("reconciler", Reconciler(pool, bus, "decision").run)
    parts = _Parts(settings, app, pool, store)
    letters.retried_by("decision", "sites", retry_rows(parts.read_sites_again, parts.sites.rows))
    letters.retried_by("decision", "catalog", retry_rows(parts.refresher.refresh_unread, parts.catalog.rows))
    app.background("refresh", parts.refresher.run)
    await parts.refresher.refresh()
    for channel in parts.channels:
        await warm(channel, timeout_s=1.0)
    # A log that is held up just now warms with its first appends.
    with suppress(ServiceError):
        await store.warm()
    await parts.consent.check_wait()
    app.background("consent's wait", parts.consent.watch_wait)
    app.server.add(pb_grpc.add_DecisionServiceServicer_to_server, parts.decisions())
    app.server.add(pb_grpc.add_CatalogServiceServicer_to_server, parts.catalogs())
    app.server.add(pb_grpc.add_ReleaseServiceServicer_to_server, parts.releases())
    holdings = parts.holdings()
    app.server.add(add_HoldingsServiceServicer_to_server, holdings)
    gate = ErasureGate(pool, holdings.erase, GrpcErasureLedger(parts.channels[1]))
    app.background("erasure ledger", gate.run)
    await gate.open()


class _Parts:
    """The adapters of this process, and the use cases over them."""

    def __init__(self, settings: Settings, app: App, pool: Pool, store: PostgresEventStore) -> None:
        self.settings = settings
        self.pool = pool
        self.clock = SystemClock()
        self.load = Load()
        self.keys = Keys(read_secret(settings.seed_key_file), read_secret(settings.token_key_file))
        addresses = (settings.identity_address, settings.consent_address, settings.features_address)
        self.channels: list[grpc.aio.Channel] = [connect(address) for address in addresses]
        for name, channel in zip(("identity", "consent", "features"), self.channels, strict=True):
            app.on_stop(name, channel.close)
        identity, consent, features = self.channels
        self.identity = IdentityClient(identity, self.load)
        self.consent = ConsentClient(consent, self.load, budget_ms=settings.budget_ms_max)
        self.features = FeaturesClient(features, self.load)
        self.sites = PostgresSites(pool, self.clock)
        self.catalog = PostgresCatalog(pool, self.clock)
        self.models = PostgresModels(pool, self.clock)
        self.vetting = Vetting(self.models, OnnxLoader(), _public_keys(settings.model_public_key_file))
        self.rankers = Rankers(self.models, self.vetting)
        self.sealer = Sealer(GrpcKeyReader(identity, "decision", self.load))
        self.log = SealedDecisionLog(store, self.sealer, self.clock)
        self.accesses = PostgresAccessLog(pool, self.clock)
        self.corrections = Corrections(self.log)
        app.on_stop("corrections", self.corrections.drain)
        self.inspect = InspectDecisions(
            log=self.log,
            sites=self.sites,
            catalog=self.catalog,
            models=self.models,
            vetting=self.vetting,
            keys=self.keys,
            accesses=self.accesses,
            serving=lambda: self.refresher.serving(),
        )
        self.scoring = Scoring(inline_cost_s=settings.inline_cost_us / 1e6, take_off=self.rankers.take_off)
        app.on_stop("scoring", self.scoring.close)
        self.refresher = Refresher(
            standing=PostgresStanding(pool),
            sites=self.sites,
            catalog=self.catalog,
            rankers=self.rankers,
            columns=self.features,
            offered_max=settings.offered_max,
        )

    async def read_sites_again(self) -> None:
        """Read sites that could not be read, and decide with what can be read now."""
        await self.sites.read_again()
        await self.refresher.refresh_unread()

    def decisions(self) -> DecisionService:
        """The face that decides."""
        serving = self.refresher.serving
        decide = Decide(
            serving=serving,
            people=People(self.identity, self.consent, self.features, self.log),
            drafting=Drafting(self.scoring, self.keys),
            log=self.log,
            corrections=self.corrections,
            keys=self.keys,
            load=self.load,
            clock=self.clock,
            budget_s_max=self.settings.budget_ms_max / 1000,
        )
        record = RecordDecisions(
            serving=serving,
            identity=self.identity,
            consent=self.consent,
            features=self.features,
            log=self.log,
            keys=self.keys,
            load=self.load,
            clock=self.clock,
        )
        return DecisionService(decide=decide, record=record, inspect=self.inspect)

    def holdings(self) -> HoldingsService:
        """The face of what is held about people."""
        held = DecisionHoldings(self.pool, self.sealer, self.inspect.explained)
        return HoldingsService(self.pool, held, self.accesses, forget=self.sealer.forget)

    def catalogs(self) -> CatalogService:
        """The face of the catalog."""
        return CatalogService(
            apply=ApplySite(self.sites, self.features, self.refresher),
            upsert=UpsertItems(self.catalog, self.refresher),
            describe=DescribeSite(self.sites, self.refresher),
            listing=ListItems(self.catalog),
            refresher=self.refresher,
        )

    def releases(self) -> ReleaseService:
        """The face of the models."""
        return ReleaseService(
            register=RegisterModel(self.models, self.vetting, self.refresher),
            activate=ActivateModel(self.models, self.vetting, self.refresher),
            models=ListModels(self.models, self.rankers, self.refresher),
            get=GetModel(self.models),
        )


def _public_keys(file: Path) -> list[bytes]:
    return public_keys_of(read_secret(file)) if file.parts else []


if __name__ == "__main__":
    run("decision", Settings, build)
