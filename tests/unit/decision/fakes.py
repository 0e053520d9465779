"""The outside of decision, in memory: each port can be made dead, slow or wrong."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from services.chassis.clock import FakeClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.chassis.gather import Load
from services.chassis.memory import MemoryEventStore
from services.chassis.sealing import DataKey, Sealer
from services.decision.domain.attempts import Logged
from services.decision.domain.layout import Floats, Subject
from services.decision.domain.plan import CompiledSite
from services.decision.domain.record import DecisionRecord, Said
from services.decision.domain.request import Ask, Consent, DecideRequest, Identity, Member, Person, Profile, Signals
from services.decision.domain.serving import Ranker, Serving, serving_of
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import Activation, Level
from services.decision.handlers.corrections import Corrections
from services.decision.handlers.decide import Decide
from services.decision.handlers.draft import Drafting, Keys
from services.decision.handlers.people import People
from services.decision.handlers.scoring import Scoring
from services.decision.store.log import SealedDecisionLog
from tests.unit.decision.world import (
    FEATURE_SET,
    MEMBER,
    NOW,
    PLACEMENT,
    PROFILE,
    SEED_KEY,
    SUBJECT,
    catalog,
    columns,
    model,
    site,
)

KEYS = Keys(SEED_KEY, b"t" * 32)
DEAD = ServiceError(Kind.UNAVAILABLE, "DOWN", "nobody answers")


class Port:
    """What every fake has: `fails` is raised; while `hangs`, calls never end; each `takes_s`; `calls` counts them."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.hangs = False
        self.takes_s = 0.0
        self.calls = 0
        self.asked = asyncio.Event()

    async def _arrive(self) -> None:
        self.calls += 1
        self.asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if self.fails is not None:
            raise self.fails


class FakeIdentity(Port):
    """Knows one person."""

    def __init__(self) -> None:
        super().__init__()
        self.person = Person(MEMBER, MEMBER, Level.KNOWN, 9_999, (Member(MEMBER),))

    async def resolve(self, identities: tuple[Identity, ...]) -> Person:
        await self._arrive()
        return self.person

    async def describe(self, subject_id: str) -> Person:
        await self._arrive()
        return self.person


class FakeConsent(Port):
    """Allows what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = frozenset({PROFILE})
        # Purposes that the person objects to in the ledger.
        self.objected: frozenset[str] = frozenset()

    async def evaluate(
        self, members: tuple[Member, ...], purposes: tuple[str, ...], signals: Signals | None = None
    ) -> Consent:
        await self._arrive()
        if signals is not None and signals.gpc == "1":
            said = dict.fromkeys(purposes, Said("gpc", "GLOBAL_PRIVACY_CONTROL"))
            return Consent(frozenset(), 7, "consent-1", frozenset(purposes), said)
        return Consent(self.allowed.intersection(purposes), 7, "consent-1", self.objected)


class FakeFeatures(Port):
    """Knows one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.subject: Subject = SUBJECT

    async def read(self, feature_set_version: str, person: Person, as_of: datetime) -> Profile:
        await self._arrive()
        return Profile(self.subject, LogPosition(1, 2, 3))


class FakeKeys(Port):
    """One key a member."""

    async def keys(self, member_ids: Sequence[str], *, mint: bool) -> Mapping[str, DataKey]:
        await self._arrive()
        return {member_id: DataKey(member_id, f"key-{member_id}", b"0" * 32) for member_id in member_ids}


class FakeLog(Port):
    """The real decision log over a log in memory, which can be away."""

    def __init__(self, keys: FakeKeys) -> None:
        super().__init__()
        self.store = MemoryEventStore()
        self._log = SealedDecisionLog(self.store, Sealer(keys), FakeClock(NOW))
        # Version 1s that hang.
        self.held_back: list[tuple[DecisionRecord, str]] = []

    def holds_key(self, member_id: str) -> bool:
        return self._log.holds_key(member_id)

    async def fetch_key(self, member_id: str) -> None:
        await self._log.fetch_key(member_id)

    async def add(self, record: DecisionRecord, attempt_id: str = "") -> LogPosition:
        if self.hangs:
            self.held_back.append((record, attempt_id))
        await self._arrive()
        return await self._log.add(record, attempt_id)

    async def amend(self, logged: Logged, record: DecisionRecord) -> LogPosition:
        await self._arrive()
        return await self._log.amend(logged, record)

    async def find(self, decision_id: str) -> Logged | None:
        await self._arrive()
        return await self._log.find(decision_id)


class FakeRanker:
    """The model of the small world."""

    def __init__(self) -> None:
        self.version = "ranker@1"
        self.feature_set_version = FEATURE_SET.version
        self.scores: Floats | None = None
        self.cost = 0.0
        self.fails = False

    def score(self, matrix: Floats) -> Floats:
        if self.fails:
            raise RuntimeError("broken model")
        return model(matrix) if self.scores is None else np.resize(self.scores, len(matrix)).astype(np.float32)

    def cost_s(self, rows_count: int) -> float:
        return self.cost

    def stop(self) -> None:
        self.fails = True


class Harness:
    """A Decide with everything around it faked, and far more time than it needs: a busy machine changes no answer."""

    def __init__(self, compiled: CompiledSite | None = None) -> None:
        self.identity = FakeIdentity()
        self.consent = FakeConsent()
        self.features = FakeFeatures()
        self.keys = FakeKeys()
        self.log = FakeLog(self.keys)
        self.ranker = FakeRanker()
        self.serving = self.serve(compiled or site())
        self.corrections = Corrections(self.log)
        self.decide = Decide(
            serving=lambda: self.serving,
            people=People(self.identity, self.consent, self.features, self.log),
            drafting=Drafting(Scoring(), KEYS),
            log=self.log,
            corrections=self.corrections,
            keys=KEYS,
            load=Load(),
            clock=FakeClock(NOW),
            budget_s_max=60.0,
        )

    def serve(self, compiled: CompiledSite, *, with_columns: bool = True, with_model: bool = True) -> Serving:
        rankers: dict[str, Ranker] = {"ranker": self.ranker} if with_model else {}
        return serving_of(Serving(), compiled, catalog(), columns() if with_columns else None, rankers, offered_max=100)

    async def logged(self, decision_id: str) -> DecisionRecord:
        """The decision as the log has it."""
        logged = await self.log._log.find(decision_id)
        assert logged is not None
        return logged.record


def request(
    *asks: Ask, request_id: str = "r-1", gpc: str = "", context: Context | None = None, digest: bytes = b"d" * 32
) -> DecideRequest:
    """A request for the small site's placement, by a known person."""
    return DecideRequest(
        request_id=request_id,
        identities=(("user_id", "42"),),
        asks=asks or (Ask(PLACEMENT.id),),
        context=context or {},
        signals=Signals(gpc=gpc) if gpc else None,
        activation=Activation.IMMEDIATE,
        digest=digest,
    )


def person(harness: Harness, bucket: int) -> Person:
    """The harness's person with another bucket."""
    return replace(harness.identity.person, holdout_bucket=bucket)
