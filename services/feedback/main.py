"""The feedback process: settings and wiring."""

import hmac
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
from comity.common.v1.holdings_pb2_grpc import add_HoldingsServiceServicer_to_server
from comity.feedback.v1.feedback_service_pb2_grpc import (
    add_FeedbackServiceServicer_to_server,
    add_RectificationServiceServicer_to_server,
)
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.access import PostgresAccessLog
from services.chassis.bus import NatsBus
from services.chassis.clock import SystemClock
from services.chassis.dead_letters import DeadLetters, retry_rows
from services.chassis.erasure_gate import ErasureGate, GrpcErasureLedger
from services.chassis.eventstore import PostgresEventStore
from services.chassis.holdings import HoldingsService
from services.chassis.inbox import Subscription
from services.chassis.key_client import GrpcKeyReader
from services.chassis.lifecycle import App, run
from services.chassis.migrations import CHASSIS, migrate
from services.chassis.postgres import Pool, create_pool
from services.chassis.reconciler import Reconciler
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect
from services.chassis.sealing import Sealer
from services.chassis.settings import ServiceSettings, read_secret
from services.feedback.clients import ConsentAnswers, ExposureTokens, IdentitySubjects
from services.feedback.handlers.join import AwaitJoined, JoinOutcomes
from services.feedback.handlers.publish import PublishEventSchemas
from services.feedback.handlers.rectify import RectifyBehavior
from services.feedback.handlers.replay import ReplayLog
from services.feedback.handlers.track import TrackBehavior
from services.feedback.service import FeedbackService, RectificationService
from services.feedback.store import (
    FeedbackHoldings,
    JoinerLetters,
    PostgresArchive,
    PostgresDecisions,
    PostgresProgress,
    PostgresRecordedBehavior,
    PostgresSchemas,
    SealedBehaviorLog,
)
from services.feedback.store.rows import JOINER
from services.feedback.subscribers import Joiner, on_decision_events

MIGRATIONS = Path(__file__).parent / "migrations"


class Settings(ServiceSettings):
    """What the feedback process is told.

    Args:
        identity_address: host:port of identity.
        consent_address: host:port of consent.
        token_key_file: the key that decision signs exposure tokens with.
        downstream_timeout_s: of one call to identity or consent.
        reward_window_days: how long after a decision an answer still counts.
        decision_wait_s: how long an exposure without items waits for its decision to come in.
        pool_size: most connections to Postgres.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_FEEDBACK_")

    identity_address: str
    consent_address: str
    token_key_file: Path
    downstream_timeout_s: float = Field(default=2.0, gt=0, le=30)
    reward_window_days: float = Field(default=7.0, gt=0, le=365)
    decision_wait_s: float = Field(default=1.0, ge=0, le=10)
    pool_size: int = Field(default=8, ge=2, le=64)


async def build(settings: Settings, app: App) -> None:
    """Wire the process; what is opened first is closed last."""
    url = settings.database_url.get_secret_value()
    for folder in (CHASSIS, MIGRATIONS):
        await migrate(url, folder)
    pool = await create_pool(url, size=settings.pool_size, name="comity-feedback")
    app.on_stop("postgres", pool.close)
    bus = await NatsBus.connect(settings.nats_url, files=settings.nats_files, name="comity-feedback")
    app.on_stop("nats", bus.close)
    # Services start in any order: the one that emits decisions may not have been here yet.
    for service in ("feedback", "decision"):
        await bus.ensure_stream(service)
    identity, consent = connect(settings.identity_address), connect(settings.consent_address)
    app.on_stop("identity", identity.close)
    app.on_stop("consent", consent.close)

    def on_commit() -> None:
        relay.wake()
        joiner.wake()

    store = PostgresEventStore(pool, on_commit=on_commit)
    app.on_stop("event log", store.drain)
    parts = _Parts(settings, pool, store, identity, consent)
    relay = Relay(pool, store, bus, "feedback")
    join = parts.joining()
    joiner = Joiner(pool, join)
    intake = Subscription(pool, bus, "decision", "feedback", on_decision_events, joiner.on_committed)
    letters = DeadLetters(pool)
    letters.retried_by("decision", "feedback", intake.retry)
    letters.retried_by("feedback", "relay", relay.retry)
    letters.retried_by("decision", JOINER, parts.unread.retry_decision)
    letters.retried_by("feedback", JOINER, parts.unread.retry_answer(join.again))
    letters.retried_by("feedback", "schemas", retry_rows(parts.schemas.book, parts.schemas.rows))
    app.keep(letters)
    app.background("relay", relay.run)
    app.background("relay's lag", relay.watch_lag)
    app.background("reconciler", Reconciler(pool, bus, "feedback").run)
    app.background("joiner", joiner.run)
    app.background("decisions", intake.run)
    app.background("decisions' lag", intake.watch_lag)
    app.server.add(add_FeedbackServiceServicer_to_server, parts.servicer(intake))
    app.server.add(add_RectificationServiceServicer_to_server, parts.rectification(on_commit))
    holdings = HoldingsService(pool, FeedbackHoldings(pool, parts.sealer), parts.accesses, forget=parts.sealer.forget)
    app.server.add(add_HoldingsServiceServicer_to_server, holdings)
    gate = ErasureGate(pool, holdings.erase, GrpcErasureLedger(consent))
    app.background("erasure ledger", gate.run)
    await gate.open()


class _Parts:
    """The adapters of this process, and the use cases over them."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        store: PostgresEventStore,
        identity: grpc.aio.Channel,
        consent: grpc.aio.Channel,
    ) -> None:
        timeout_s = settings.downstream_timeout_s
        self.settings = settings
        self.clock = SystemClock()
        self.token_key = read_secret(settings.token_key_file)
        # Of one key two, neither of which tells the other.
        self.blinding_key = hmac.digest(self.token_key, b"comity anonymous behavior", "sha256")
        self.sealer = sealer = Sealer(GrpcKeyReader(identity, "feedback", timeout_s=timeout_s))
        self.pool = pool
        self.accesses = PostgresAccessLog(pool, self.clock)
        self.subjects = IdentitySubjects(identity, timeout_s=timeout_s)
        self.consents = ConsentAnswers(consent, timeout_s=timeout_s)
        self.schemas = PostgresSchemas(pool, self.clock)
        self.log = SealedBehaviorLog(pool, store, sealer, self.clock)
        self.decisions = PostgresDecisions(pool, sealer)
        self.progress = PostgresProgress(pool)
        self.archive = PostgresArchive(pool, sealer)
        self.unread = JoinerLetters(pool, sealer)

    def joining(self) -> JoinOutcomes:
        """The joiner's use case."""
        return JoinOutcomes(
            log=self.log,
            decisions=self.decisions,
            progress=self.progress,
            schemas=self.schemas,
            subjects=self.subjects,
            consents=self.consents,
            unread=self.unread,
            clock=self.clock,
            blinding_key=self.blinding_key,
            reward_window=timedelta(days=self.settings.reward_window_days),
        )

    def rectification(self, on_commit: Callable[[], None]) -> RectificationService:
        """The gRPC face that puts recorded behavior right."""
        recorded = PostgresRecordedBehavior(self.pool, self.sealer, on_commit=on_commit)
        return RectificationService(RectifyBehavior(schemas=self.schemas, recorded=recorded))

    def servicer(self, intake: Subscription) -> FeedbackService:
        """The gRPC face."""
        track = TrackBehavior(
            subjects=self.subjects,
            consents=self.consents,
            tokens=ExposureTokens(self.token_key),
            schemas=self.schemas,
            log=self.log,
            decisions=self.decisions,
            clock=self.clock,
            blinding_key=self.blinding_key,
            decision_wait_s=self.settings.decision_wait_s,
        )
        return FeedbackService(
            track=track,
            replay=ReplayLog(archive=self.archive, subjects=self.subjects, consents=self.consents),
            publish=PublishEventSchemas(self.schemas),
            accesses=self.accesses,
            await_joined=AwaitJoined(arrived=intake, log=self.log, decisions=self.decisions, progress=self.progress),
        )


if __name__ == "__main__":
    run("feedback", Settings, build)
