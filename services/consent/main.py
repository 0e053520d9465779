"""The consent process: settings and wiring."""

import asyncio
from pathlib import Path

import structlog
from comity.common.v1.holdings_pb2_grpc import add_HoldingsServiceServicer_to_server
from comity.consent.v1.consent_service_pb2_grpc import add_ConsentServiceServicer_to_server
from comity.consent.v1.privacy_service_pb2_grpc import add_PrivacyServiceServicer_to_server
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.access import PostgresAccessLog
from services.chassis.bus import NatsBus
from services.chassis.clock import SystemClock
from services.chassis.dead_letters import DeadLetters, retry_rows
from services.chassis.eventstore import PostgresEventStore
from services.chassis.holdings import HoldingsService
from services.chassis.lifecycle import App, run
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.postgres import Pool, create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect
from services.chassis.settings import ServiceSettings, read_secret
from services.consent.clients import GrpcIdentityReader, GrpcParticipant, GrpcRectifier
from services.consent.domain.journal import key_of
from services.consent.handlers.erasing import EraseWorker
from services.consent.handlers.ledger import ConsentHandlers
from services.consent.handlers.privacy import PrivacyHandlers
from services.consent.handlers.privacy_ports import Participant, Ports
from services.consent.service import ConsentService, PrivacyService
from services.consent.store.erasures import PostgresErasures
from services.consent.store.holdings import ConsentHoldings, OwnParticipant
from services.consent.store.journal import JournalFile, PostgresJournal
from services.consent.store.ledger import PostgresLedger
from services.consent.store.policies import PostgresPolicies
from services.consent.store.receipts import Ed25519Signer, PostgresReceipts
from services.consent.subscribers import Erasures, Expiries, Journaling

_log = structlog.get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"


class Settings(ServiceSettings):
    """What consent is told.

    Args:
        identity_address: of identity; it may be away.
        features_address: of features, decision_address and feedback_address: export and erasure ask them.
        receipt_key_file: the key that receipts are signed with.
        controller: who answers to people for what is held about them, of a site that was applied by a release before
            and does not say so itself.
        journal_dir: folder of the journal of refusals and erasures, where a backup of the database does not reach;
            all replicas share it. None: there is no journal, and a restore forgets what was refused since.
        journal_missing_ok: serve a restored database also without the journal that it was written into.
        decide_budget_ms_max: longest budget of a Decide anywhere; a revocation waits for it before it returns.
        evaluate_timeout_ms: after which Postgres gives a consent read up; the caller then has no consent.
        write_timeout_ms: the same for every other statement.
        database_connections_max: of each of the two pools.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_CONSENT_")

    identity_address: str
    features_address: str
    decision_address: str
    feedback_address: str
    receipt_key_file: Path
    controller: str = ""
    journal_dir: Path | None = None
    journal_missing_ok: bool = False
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
    bus = await NatsBus.connect(settings.nats_url, files=settings.nats_files, name="comity-consent")
    app.on_stop("nats", bus.close)
    await bus.ensure_stream("consent")
    relay = Relay(pool, PostgresEventStore(pool), bus, "consent")
    letters = DeadLetters(pool)
    letters.retried_by("consent", "relay", relay.retry)
    app.keep(letters)
    app.background("relay", relay.run)
    app.background("relay's lag", relay.watch_lag)
    app.background("reconciler", Reconciler(pool, bus, "consent").run)
    channel = connect(settings.identity_address)
    app.on_stop("identity", channel.close)
    clock = SystemClock()
    policies = PostgresPolicies(pool, clock, controller=settings.controller)
    letters.retried_by("consent", "policy", retry_rows(policies.read_again, *policies.rows))
    ledger = PostgresLedger(pool, read_pool, policies)
    identity = GrpcIdentityReader(channel)
    accesses = PostgresAccessLog(pool, clock, outlives_erasure=True)
    drain_s = settings.decide_budget_ms_max / 1000
    erasures = PostgresErasures(pool, ledger, clock)
    journal = _journal(settings, pool, ledger, erasures)
    if journal is not None:
        await journal.catch_up()
        app.background("journal", Journaling(pool, journal).run)
        app.background("journal's lag", journal.watch)
    handlers = ConsentHandlers(ledger, policies, identity, accesses, clock, drain_s=drain_s, pause=asyncio.sleep)
    app.background("expiries", Expiries(pool, handlers).run)
    app.server.add(add_ConsentServiceServicer_to_server, ConsentService(handlers, journal))
    channels = {"identity": channel}
    for name in ("features", "decision", "feedback"):
        channels[name] = connect(getattr(settings, f"{name}_address"))
        app.on_stop(name, channels[name].close)
    holdings = ConsentHoldings(pool)
    participants: dict[str, Participant] = {name: GrpcParticipant(name, one) for name, one in channels.items()}
    ports = Ports(
        erasures=erasures,
        participants={**participants, "consent": OwnParticipant(pool, holdings)},
        identity=identity,
        receipts=PostgresReceipts(pool, policies),
        rectifier=GrpcRectifier(channels["feedback"]),
        accesses=accesses,
        signer=Ed25519Signer(read_secret(settings.receipt_key_file)),
        clock=clock,
    )
    worker = EraseWorker(ports)
    erasing = Erasures(pool, worker)
    app.background("erasures", erasing.run)
    app.background("erasures' age", worker.watch_age)
    privacy = PrivacyHandlers(ports, drain_s=drain_s, pause=asyncio.sleep, wake=erasing.wake)
    app.server.add(add_PrivacyServiceServicer_to_server, PrivacyService(privacy))
    app.server.add(add_HoldingsServiceServicer_to_server, HoldingsService(pool, holdings, accesses))


def _journal(
    settings: Settings, pool: Pool, ledger: PostgresLedger, erasures: PostgresErasures
) -> PostgresJournal | None:
    if settings.journal_dir is None or not settings.journal_dir.parts:
        _log.warning("no journal: a restored database forgets what was refused since; set COMITY_CONSENT_JOURNAL_DIR")
        return None
    file = JournalFile(settings.journal_dir, key_of(read_secret(settings.receipt_key_file)))
    log = PostgresEventStore(pool)
    return PostgresJournal(pool, log, file, ledger, erasures, missing_ok=settings.journal_missing_ok)


if __name__ == "__main__":
    run("consent", Settings, build)
