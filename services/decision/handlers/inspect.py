"""Decisions of the past: as they were logged, explained, and decided again."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from typing import Generic, TypeVar

from services.chassis.errors import Kind, ServiceError
from services.chassis.ports import Access, AccessLog
from services.chassis.uncancelled import Shared
from services.decision.domain.explain import Explanation, Step, explain, of_catalog, of_item
from services.decision.domain.plan import CompiledSite, Plan
from services.decision.domain.record import DecisionRecord
from services.decision.domain.replay import Pinned, Replayed, Scorer, decide_again
from services.decision.domain.serving import Serving
from services.decision.handlers.draft import Keys
from services.decision.handlers.ports import CatalogStore, DecisionLog, ModelStore, SiteStore
from services.decision.handlers.rankers import Vetting

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Replays come in runs over the same few versions; a model takes megabytes.
SITES_MAX = 16
MODELS_MAX = 4
GET_METHOD = "comity.decision.v1.DecisionService/GetDecision"
EXPLAIN_METHOD = "comity.decision.v1.DecisionService/Explain"


class Kept(Generic[K, V]):
    """The last few values of something slow to load that never changes."""

    def __init__(self, load: Callable[[K], Awaitable[V | None]], count_max: int) -> None:
        self._load = load
        self._count_max = count_max
        self._values: OrderedDict[K, V] = OrderedDict()
        self._loads = Shared[K, V | None]()

    async def get(self, key: K) -> V | None:
        """The value; None when there is none, which is asked again the next time."""
        value = self._values.get(key)
        if value is None:
            return await self._loads(key, lambda: self._keep(key))
        self._values.move_to_end(key)
        return value

    async def _keep(self, key: K) -> V | None:
        value = await self._load(key)
        if value is not None:
            self._values[key] = value
            while len(self._values) > self._count_max:
                self._values.popitem(last=False)
        return value


class InspectDecisions:
    """GetDecision, Explain and Replay."""

    def __init__(
        self,
        *,
        log: DecisionLog,
        sites: SiteStore,
        catalog: CatalogStore,
        models: ModelStore,
        vetting: Vetting,
        keys: Keys,
        accesses: AccessLog,
        serving: Callable[[], Serving],
    ) -> None:
        self._log = log
        self._catalog = catalog
        self._models = models
        self._vetting = vetting
        self._keys = keys
        self._accesses = accesses
        self._serving = serving
        self._sites = Kept[str, CompiledSite](sites.load, SITES_MAX)
        self._scorers = Kept[str, Scorer](self._load_scorer, MODELS_MAX)

    async def get(self, decision_id: str, access: Access) -> DecisionRecord:
        """The decision as it stands; that it was read is a fact about its subject.

        Raises:
            ServiceError: NOT_FOUND (DECISION_UNKNOWN, SUBJECT_ERASED); UNAVAILABLE.
        """
        record = await self._find(decision_id)
        await self._read(record, access, GET_METHOD)
        return record

    async def explain(self, decision_id: str, access: Access, item_id: str = "") -> tuple[DecisionRecord, Explanation]:
        """The decision and why it came out as it did; that it was read is a fact about its subject.

        Raises:
            ServiceError: NOT_FOUND, as of get, and when the pinned site is not kept; UNAVAILABLE.
        """
        record = await self._find(decision_id)
        explanation = await self.explained(record)
        *steps, served = explanation.steps
        explanation = replace(explanation, steps=(*steps, *await self._around(record, item_id), served))
        await self._read(record, access, EXPLAIN_METHOD)
        return record, explanation

    async def _around(self, record: DecisionRecord, item_id: str) -> list[Step]:
        """What the catalog excluded before there were candidates, and why an item that was asked about is not there."""
        plan = _plan_of(await self._site_of(record), record)
        view = self._serving().views.get(record.placement_id)
        steps = [] if view is None else list(of_catalog(record, plan, view))
        if item_id:
            (item,) = await self._catalog.at([item_id], int(record.versions.catalog or 0))
            steps.append(of_item(record, plan, item_id, item))
        return steps

    async def explained(self, record: DecisionRecord) -> Explanation:
        """Why a decision that is at hand came out as it did.

        Raises:
            ServiceError: NOT_FOUND when the pinned site is not kept.
        """
        return explain(record, _plan_of(await self._site_of(record), record))

    async def replay(self, decision_id: str) -> Replayed:
        """The decision, made again.

        Raises:
            ServiceError: NOT_FOUND, as of explain; FAILED_PRECONDITION (NEWER_RELEASE).
        """
        record = await self._find(decision_id)
        if record.is_newer:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "NEWER_RELEASE",
                "decision_id: the decision was made by a newer release; replay it on a replica of that release",
            )
        pinned = Pinned(
            site=await self._site_of(record),
            items=await self._catalog.at(record.inputs.candidates.item_ids, int(record.versions.catalog or 0)),
            scorer=await self._scorers.get(record.versions.model) if record.versions.model else None,
            seed_key=self._keys.seed,
            seed_key_id=self._keys.seed_id,
        )
        return await asyncio.to_thread(decide_again, record, pinned)

    async def _find(self, decision_id: str) -> DecisionRecord:
        logged = await self._log.find(decision_id)
        if logged is None:
            raise ServiceError(Kind.NOT_FOUND, "DECISION_UNKNOWN", "decision_id: there is no such decision in the log")
        return logged.record

    async def _read(self, record: DecisionRecord, access: Access, method: str) -> None:
        """Record under the member: what is about a member goes when the member is erased."""
        if record.member_id:
            await self._accesses.accessed(record.member_id, access, method)

    async def _site_of(self, record: DecisionRecord) -> CompiledSite:
        site = await self._sites.get(record.versions.site)
        if site is None:
            raise ServiceError(Kind.NOT_FOUND, "SITE_UNKNOWN", "the site that the decision was made by is not kept")
        return site

    async def _load_scorer(self, version: str) -> Scorer | None:
        """The pinned model; None when it is not kept, or may not be loaded."""
        name, _, sha256 = version.rpartition("@")
        model = await self._models.data(name, sha256)
        if model is None:
            return None
        try:
            ranker = await self._vetting.load(model)
        except ServiceError as error:
            if error.passes:
                raise
            return None
        return ranker.score


def _plan_of(site: CompiledSite, record: DecisionRecord) -> Plan:
    plan = site.plans.get(record.placement_id)
    if plan is None:
        raise ServiceError(Kind.NOT_FOUND, "PLACEMENT_UNKNOWN", "the site of the decision has no such placement")
    return plan
