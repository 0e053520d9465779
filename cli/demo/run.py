"""One demo, from an empty folder to findings."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity_client import ComityClient, Decision, Entry
from rich.progress import Progress

from cli.bundle import Bundle, apply_bundle, load_bundle
from cli.commands_log import replay_many
from cli.connections import Services
from cli.demo.browsing import (
    CALL_TIMEOUT_S,
    DECIDE_DEADLINE_S,
    PLACEMENTS,
    TRACK_DEADLINE_S,
    Backend,
    Round,
    Shown,
    can_be_answered,
)
from cli.demo.findings import Findings, Story
from cli.demo.log import click_rates, read_log, wait_joined
from cli.demo.simulator import Consent, Shop, Visitor, population
from cli.demo.site import consent_purposes, default_slates, eligible_items, exploring
from cli.demo.statistics import percentile
from cli.fresh import embedded_only, make_room
from cli.options import access
from cli.output import progress_bar
from cli.stack import SERVICES, Stack
from learning.errors import LearningError
from learning.pipeline import Services as LearningServices
from learning.pipeline import TrainRequest, train
from learning.train import TrainPlan
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call_again

MODEL = "shop_clicks"
TRAINING_PURPOSE = "model_training"
# A few thousand short sessions: trees of four leaves generalize, larger ones learn who was asked.
PLAN = TrainPlan(params={"num_leaves": 4})
# Every decision traced would cost the machine more than the decisions; the ones that are shown are always traced.
TRACE_RATIO = "0.05"
CATCH_UP_S = 60.0
ACTIVE_WAIT_S = 60.0
# Some of the first visitors are in the holdout, where no model decides.
ACTIVE_TRIES = 5
POLL_S = 0.05
STORY_TRIES = 8


@dataclass(frozen=True, slots=True)
class Scale:
    """How much happens.

    Args:
        before: sessions of each visitor before there is a model.
        after: and with it.
    """

    visitors: int
    before: int
    after: int


# Some 8,300 decisions: enough to know each visitor's taste by and to tell ranked from holdout, in about two minutes on
# 2 cores.
FULL = Scale(visitors=320, before=9, after=4)
QUICK = Scale(visitors=60, before=3, after=2)


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """What to run.

    Args:
        data_dir: of the demo's own stack; emptied first.
        site: folder of the bundle.
    """

    data_dir: Path
    site: Path
    seed: int
    scale: Scale
    quick: bool = False


async def run_demo(request: DemoRequest, *, quiet: bool = False) -> Findings:
    """Run it all and say what was found; nothing is left running.

    Raises:
        ServiceError: something did not work at all.
    """
    started_s = time.monotonic()
    findings = Findings(seed=request.seed, quick=request.quick, traces=request.data_dir / "traces")
    bundle = load_bundle(request.site)
    embedded_only()
    await make_room(request.data_dir)
    with progress_bar(quiet=quiet) as bar:
        starting = bar.add_task("starting", total=None)
        stack = Stack(
            request.data_dir,
            env=_settings(),
            progress=lambda text: bar.update(starting, description=f"starting {text}"),
        )
        async with stack, _connected(stack, bundle) as (services, client):
            bar.remove_task(starting)
            demo = Demo(request, bundle, services, client, findings, bar)
            await demo.run()
    findings.seconds = time.monotonic() - started_s
    return findings


class Demo:
    """The steps of one run, in order."""

    def __init__(
        self,
        request: DemoRequest,
        bundle: Bundle,
        services: Services,
        client: ComityClient,
        findings: Findings,
        bar: Progress,
    ) -> None:
        self._request = request
        self._bundle = bundle
        self._services = services
        self._client = client
        self._found = findings
        self._bar = bar
        rng = np.random.default_rng(request.seed)
        items = eligible_items(bundle)
        self._shop = Shop(items, rng)
        self._visitors = population(items, request.scale.visitors, rng)
        self._backend = Backend(
            client,
            services,
            self._shop,
            run_id=uuid.uuid4().hex[:8],
            seed=request.seed,
            purposes=consent_purposes(bundle),
        )

    async def run(self) -> None:
        """Explore, learn, decide again, then hold it all against the log."""
        scale = self._request.scale
        await apply_bundle(exploring(self._bundle), self._services)
        await self._backend.ask_consent(self._visitors)
        await self._first_days(scale.before)
        await self._learn()
        await apply_bundle(self._bundle, self._services)
        await self._until_model_decides()
        await self._browse("visitors come back, the model ranks", Round(2, 0), rounds=scale.after)
        await self._tell_stories()
        self._count()
        await self._replay()
        await self._measure()

    async def _first_days(self, rounds: int) -> None:
        """Everybody comes by some times; some log in after the first, some revoke half way."""
        what, half = "visitors browse, all is explored", rounds // 2
        await self._browse(what, Round(1, 0), rounds=1)
        await self._backend.log_in(visitor for visitor in self._visitors if visitor.logs_in)
        await self._browse(what, Round(1, 1), rounds=half - 1)
        await self._backend.take_back(visitor for visitor in self._visitors if visitor.consent is Consent.REVOKED)
        await self._browse(what, Round(1, half), rounds=rounds - half)

    async def _browse(self, what: str, first: Round, *, rounds: int) -> None:
        """Some rounds; nobody comes back before what they did the last time can be seen, as on other days."""
        task = self._bar.add_task(what, total=len(self._visitors) * rounds)
        for session in range(first.session, first.session + rounds):
            await self._backend.browse(
                self._visitors, Round(first.phase, session), advance=lambda: self._bar.advance(task)
            )
            await self._catch_up()
        self._bar.remove_task(task)

    async def _learn(self) -> None:
        """Train on what came back, activate, and wait until it decides."""
        task = self._bar.add_task("outcomes are joined", total=None)
        await wait_joined(self._services, self._backend.journal.answers)
        stubs = LearningServices(
            self._services.feedback, self._services.features, self._services.release, self._services.sign
        )
        try:
            report = await train(
                stubs,
                TrainRequest(name=MODEL, purpose=TRAINING_PURPOSE, plan=PLAN),
                progress=lambda step, done, most: self._bar.update(
                    task, description=f"training: {step}", completed=done, total=most or None
                ),
            )
        except LearningError as error:
            raise ServiceError(Kind.FAILED_PRECONDITION, "NOTHING_LEARNED", str(error)) from error
        self._found.model = {
            "version": report.model_version,
            "rows": report.rows_count,
            "ndcg": report.held_out_ndcg10,
        }
        self._bar.remove_task(task)

    async def _catch_up(self) -> None:
        """Returns when decisions see everything that was tracked so far: on positions of the log, not on a guess."""
        marked = await self._backend.mark(self._consenting()[0])
        position = features_pb.AwaitPositionRequest(source="feedback", position=marked.position)
        await call_again(self._services.features.AwaitPosition, position, CATCH_UP_S)
        columns = decision_pb.AwaitItemColumnsRequest(behavior_position=marked.position)
        await call_again(self._services.catalog.AwaitItemColumns, columns, CATCH_UP_S)

    async def _until_model_decides(self) -> None:
        """Returns when somebody was ranked by the model that was activated.

        Raises:
            ServiceError: DEADLINE.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + ACTIVE_WAIT_S
        while loop.time() < until:
            for visitor in self._consenting()[:ACTIVE_TRIES]:
                hero = (await self._backend.decide(visitor, 1, {}))[0]
                if hero.versions.get("model"):
                    return
            await asyncio.sleep(POLL_S)
        raise ServiceError(Kind.DEADLINE, "MODEL_NOT_ACTIVE", "the model was activated and does not decide")

    def _consenting(self) -> list[Visitor]:
        return [visitor for visitor in self._visitors if visitor.consent is Consent.GIVEN]

    async def _tell_stories(self) -> None:
        """Decide for three visitors once more, traced, and ask why it came out so."""
        known = await self._ranked_visitor()
        refused = next((v for v in self._visitors if v.consent is Consent.REFUSED), None)
        if refused is not None:
            await self._tell("A visitor who refused", (await self._traced(refused))[0])
        if known is not None:
            await self._backend.revoke(known)
            await self._tell("The first visitor, having just revoked", (await self._traced(known))[0])

    async def _ranked_visitor(self) -> Visitor | None:
        """A logged-in visitor, made known by a story in which the model ranked; they will revoke next."""
        candidates = [visitor for visitor in self._consenting() if visitor.logs_in] or self._consenting()
        for visitor in candidates[:STORY_TRIES]:
            hero = (await self._traced(visitor))[0]
            if hero.reason == "RANKED":
                await self._tell("A visitor who agreed and logged in", hero)
                return visitor
        return None

    async def _traced(self, visitor: Visitor) -> list[Decision]:
        traceparent = f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"
        return await self._backend.decide(visitor, 2, {"hour": 20.0}, traceparent=traceparent)

    async def _tell(self, title: str, decision: Decision) -> None:
        if not decision.decision_id:
            return
        request = decision_pb.ExplainRequest(
            decision_id=decision.decision_id, access=access("demo", "a story of the page")
        )
        explanation = await call_again(self._services.decision.Explain, request, CALL_TIMEOUT_S)
        self._found.stories.append(Story(title, decision, explanation))

    def _count(self) -> None:
        """What the backend got: numbers of decisions by what the visitor had said."""
        found, journal = self._found, self._backend.journal
        found.visitors = {
            "agreed": sum(v.consent is Consent.GIVEN for v in self._visitors),
            "refused": sum(v.consent is Consent.REFUSED for v in self._visitors),
            "took it back on the way": sum(v.consent is Consent.REVOKED for v in self._visitors),
            "logged in": sum(v.logs_in for v in self._visitors),
        }
        found.tracked = dict(journal.tracked)
        refused = [shown for shown in journal.shown if shown.consent is Consent.REFUSED]
        revoked = [shown for shown in journal.shown if shown.consent is Consent.REVOKED]
        found.no_consent, found.no_consent_defaults = len(refused), sum(map(self._is_default, refused))
        found.revoked, found.revoked_defaults = len(revoked), sum(map(self._is_default, revoked))
        ranked = [s for s in journal.shown if s.phase == 2 and s.consent is Consent.GIVEN and not s.decision.holdout]
        found.with_consent = len(ranked)
        found.ranked = sum(s.decision.source == "slate" and bool(s.decision.versions.get("model")) for s in ranked)
        found.fallbacks = dict(Counter(s.decision.fallback_reason for s in journal.shown if s.decision.fallback_reason))
        found.latency_ms = {
            "p50": percentile(journal.latencies_s, 0.5) * 1000,
            "p99": percentile(journal.latencies_s, 0.99) * 1000,
        }

    def _is_default(self, shown: Shown) -> bool:
        """Whether the answer is the placement's declared default, entry by entry."""
        declared = default_slates(self._bundle)[shown.decision.placement_id]
        given = [(entry.item_id, entry.variant_id) for entry in shown.decision.entries]
        return shown.decision.source != "slate" and given == [(e.item_id, e.variant_id) for e in declared]

    async def _replay(self) -> None:
        """Decide everything again from the logged inputs."""
        answered = {shown.decision.decision_id: shown.decision for shown in self._backend.journal.shown}
        by_client = sum(shown.decision.source == "client_default" for shown in self._backend.journal.shown)
        ids = [name for name in answered if name]
        task = self._bar.add_task("every decision is replayed", total=len(ids))
        replayed = await replay_many(self._services.decision, ids, advance=lambda: self._bar.advance(task))
        found = self._found
        found.replayed_identical, found.different = replayed.identical, replayed.different
        # An answer without a token said itself that the log does not hold it; with one it was a promise.
        lost = [name for name in replayed.missing if answered[name].exposure_token]
        found.decisions = replayed.decisions + len(lost)
        found.unlogged = len(replayed.missing) - len(lost) + by_client

    async def _measure(self) -> None:
        """Click rates from the log, for those who agreed, once there was a model."""
        task = self._bar.add_task("reading the log", total=None)
        await wait_joined(self._services, self._backend.journal.answers)
        log = await read_log(self._services)
        # Stories are no part of the experiment: nobody looked at them. Clicks on answers that were late, or for whom
        # was not known, cannot be joined to them, so those are left out, in both arms alike.
        stories = {story.decision.decision_id for story in self._found.stories}
        asked = {
            shown.decision.decision_id: shown.visitor
            for shown in self._backend.journal.shown
            if shown.phase == 2 and shown.consent is Consent.GIVEN and shown.decision.placement_id == PLACEMENTS[0]
            if can_be_answered(shown.decision) and shown.decision.decision_id not in stories
        }
        self._found.rates = click_rates(log, self._shop, asked)
        self._bar.remove_task(task)


def _settings() -> dict[str, dict[str, str]]:
    """Settings of the services over the stack's."""
    return {name: {f"COMITY_{name.upper()}_TRACE_RATIO": TRACE_RATIO} for name in SERVICES}


@asynccontextmanager
async def _connected(stack: Stack, bundle: Bundle) -> AsyncIterator[tuple[Services, ComityClient]]:
    """The stubs, and the client as a backend uses it, with the site's own defaults as the caller's."""
    defaults = {
        placement: [Entry(entry.item_id, entry.variant_id, slot) for slot, entry in enumerate(entries)]
        for placement, entries in default_slates(bundle).items()
    }
    client = ComityClient(
        stack.address("decision"),
        feedback_address=stack.address("feedback"),
        defaults=defaults,
        deadline_s=DECIDE_DEADLINE_S,
        track_deadline_s=TRACK_DEADLINE_S,
    )
    async with Services(stack.addresses, model_key=stack.data_dir.model_key) as services, client:
        yield services, client
