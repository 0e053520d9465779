"""Cuts histories from this tree: what it writes down, byte by byte, and what follows from it.

    .venv/bin/python -m tests.replay.cut NAME

writes `tests/replay/histories/NAME/`; every later tree must read those files to the same effect (test_histories.py).
Cut once a release and whenever the way decisions are made changes; a history that is there is never cut again.

Numbers are sums of a few powers of two, so that their products and sums are exact on every processor.
"""

import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2
from comity.feedback.v1 import feedback_events_pb2
from google.protobuf import text_format
from google.protobuf.message import Message

from services.chassis.clock import FakeClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.chassis.gather import Load
from services.chassis.sealing import Sealer
from services.consent.domain.ledger import Answer, Collection, State
from services.consent.wire import encode_answer
from services.decision.domain.catalog import NO_ITEMS, ItemColumns
from services.decision.domain.layout import Subject
from services.decision.domain.record import DecisionRecord
from services.decision.domain.release import NewModel
from services.decision.domain.request import Ask, PastDecision
from services.decision.domain.serving import Serving, serving_of
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import Level
from services.decision.handlers.corrections import Corrections
from services.decision.handlers.decide import Decide
from services.decision.handlers.draft import Drafting
from services.decision.handlers.past import RecordDecisions
from services.decision.handlers.people import People
from services.decision.handlers.scoring import Scoring
from services.decision.ranker import OnnxLoader
from services.decision.wire.site import compiled_from_pb, item_from_pb
from services.features.domain.aggregates import ItemLayout, MemberLayout
from services.features.domain.feature_set import FeatureSet, compile_features
from services.features.domain.item_counts import encode as encode_block
from services.features.domain.item_counts import fold_items
from services.features.domain.members import Behavior, contribution, empty, fold
from services.features.domain.members import encode as encode_member
from services.features.wire import feature_set_to_pb, features_from_pb, item_from_bytes
from services.identity.domain.facts import IdentityUnlinked
from services.identity.domain.identities import NAMESPACES, Pseudonym
from services.identity.domain.linking import link, unlink
from services.identity.domain.subjects import Link, Named
from services.identity.domain.subjects import People as Persons
from services.identity.wire import encode as encode_fact
from tests.replay.reading import (
    HISTORIES,
    newest_of,
    outcome_of_consent,
    outcome_of_decision,
    outcome_of_features,
    outcome_of_links,
)
from tests.unit.decision.fakes import DEAD, KEYS, FakeLog, Harness, request
from tests.unit.decision.onnx_models import linear
from tests.unit.decision.world import MEMBER, NOW, PROFILE

OTHER_MEMBER = "b" * 24 + "by"

FEATURES = """
features { name: "price" item_attribute { attribute: "price" } }
features { name: "clicks" item_count { event_type: "click" } }
features { name: "visits" purposes: "profile_personalization" subject_count { event_type: "visit" } }
features { name: "taste" purposes: "profile_personalization"
           similarity { attributes: "tags" event_type: "click" dimensions: 2 } }
features { name: "hour" context_value { key: "hour" default_value: 12 } }
"""

SITE = """
name: "shop" holdout_share: 0.125 consent_policy_version: "consent-1" exposure_purposes: "measurement"
placements { id: "home" slate_size: 3 policy_id: "ranked" purposes: "profile_personalization"
             default_slate { item_id: "item-1" variant_id: "large" } default_slate { item_id: "gift-card" } }
placements { id: "greedy" slate_size: 2 policy_id: "by_price" purposes: "profile_personalization"
             default_slate { item_id: "item-1" } default_slate { item_id: "item-2" } }
placements { id: "popular" slate_size: 2 policy_id: "by_price" purposes: "profile_personalization"
             default_slate { item_id: "item-1" } popular_without_consent: true }
placements { id: "layered" slate_size: 2 policy_id: "ranked" purposes: "profile_personalization"
             default_slate { item_id: "item-1" }
             layers { level: SUBJECT_LEVEL_ANONYMOUS }
             layers { level: SUBJECT_LEVEL_KNOWN purposes: "profile_personalization" } }
placements { id: "members" slate_size: 2 policy_id: "for_members" purposes: "profile_personalization"
             default_slate { item_id: "item-1" } }
placements { id: "off" slate_size: 2 policy_id: "by_price" purposes: "profile_personalization"
             default_slate { item_id: "item-1" } disabled: true }
policies { id: "ranked" eligibility: "item.attributes.price < context.limit" ranker { model: "ranker" }
           epsilon: 0.25 popular_by: "clicks" }
policies { id: "by_price" ranker { column: "price" } popular_by: "clicks" }
policies { id: "for_members" audience: "context.plan == 'gold'" ranker { column: "price" } popular_by: "clicks" }
"""

ITEMS = [
    site_pb2.Item(
        id=f"item-{k}",
        numbers={"price": float(k)},
        categories={"tags": site_pb2.Categories(values=["red" if k % 2 else "blue"])},
        variants=["small", "large"],
        retired=k == 5,
    )
    for k in range(7)
]
CONTEXT: Context = {"limit": 5.0, "hour": 20.0, "plan": "gold", "unread": "of no rule"}


class UncertainLog(FakeLog):
    """Takes a decision in and does not say so in time."""

    async def add(self, record: DecisionRecord, attempt_id: str = "") -> LogPosition:
        """As of FakeLog."""
        await super().add(record, attempt_id)
        raise ServiceError(Kind.DEADLINE, "LATE", "the answer did not come in time")


class World:
    """A site, a model and the fakes of everybody around decision."""

    def __init__(self) -> None:
        declared = text_format.Parse(FEATURES, feature_set_pb2.FeatureSet())
        self.feature_set = feature_set_to_pb(_compiled(declared), declared.features)
        self.site = text_format.Parse(SITE, site_pb2.Site(feature_set_version=self.feature_set.version))
        self.compiled = compiled_from_pb(self.site, self.feature_set)
        width = len(self.feature_set.columns)
        weights = [0.5, 0.25, 1.0, 2.0, 0.125][:width]
        onnx = linear(width, weights=weights).SerializeToString()
        columns = tuple(column.name for column in self.feature_set.columns)
        sha256 = hashlib.sha256(onnx).hexdigest()
        self.model = NewModel("ranker", sha256, self.feature_set.version, width, onnx, columns)
        self.ranker = OnnxLoader().load(self.model)
        self.streams: list[dict[str, Any]] = []

    def serving(self, *, with_model: bool = True) -> Serving:
        """What decides."""
        rows = np.arange(len(ITEMS) * self.feature_set.item_width, dtype=np.float32).reshape(
            len(ITEMS), -1
        ) / np.float32(8)
        rows[:, 1] = rows[::-1, 1]
        ids = tuple(item.id for item in ITEMS)
        columns = ItemColumns(
            "columns-1", self.feature_set.version, ids, rows, LogPosition(1, 5, 9), LogPosition(1, 4, 3)
        )
        catalog = NO_ITEMS.with_items(1, map(item_from_pb, ITEMS))
        rankers = {"ranker": self.ranker} if with_model else {}
        return serving_of(Serving(), self.compiled, catalog, columns, rankers, offered_max=100)

    def harness(self, *, with_model: bool = True) -> Harness:
        """Everybody well, the person known and agreed."""
        harness = Harness()
        harness.serving = self.serving(with_model=with_model)
        vector = np.array([2.0, 0.5, -1.5], dtype=np.float32)[: self.feature_set.subject_width]
        harness.features.subject = Subject(vector, b"\1" * len(vector))
        return harness

    async def decided(
        self, name: str, *asks: Ask, arrange: Callable[[Harness], None] | None = None, gpc: str = "", **world: Any
    ) -> None:
        """Decide, and keep what was logged under this name."""
        harness = self.harness(**world)
        if arrange is not None:
            arrange(harness)
        answers = await harness.decide(request(*asks, request_id=name, gpc=gpc, context=CONTEXT))
        await harness.corrections.drain()
        for answer in answers.decisions:
            await self._keep(harness, f"{name}-{answer.placement_id}", answer.decision_id)

    async def recorded(
        self, name: str, *, allowed: Iterable[str] = (PROFILE,), propensities: Sequence[float] = ()
    ) -> None:
        """Record a slate of another system."""
        harness = self.harness()
        harness.consent.allowed = frozenset(allowed)
        record = RecordDecisions(
            serving=lambda: harness.serving,
            identity=harness.identity,
            consent=harness.consent,
            features=harness.features,
            log=harness.log,
            keys=KEYS,
            load=Load(),
            clock=FakeClock(NOW),
        )
        shown = ["item-3", "item-5", "item-0"]
        identities = (("user_id", "42"),)
        past = PastDecision(name, "", identities, "home", shown, NOW, propensities, CONTEXT, b"d" * 32)
        (result,) = await record([past])
        await self._keep(harness, name, result.decision_id)

    async def _keep(self, harness: Harness, name: str, decision_id: str) -> None:
        events = await harness.log.store.read_stream(decision_id)
        sealer = Sealer(harness.keys)
        plain = [await sealer.open(event) for event in events]
        self.streams.append({"name": name, "member_id": events[-1].subject_id, "versions": list(map(_text, plain))})


async def cut_decisions() -> dict[str, Any]:
    """Decisions of every rung, and all that a replay needs of them."""
    world = World()
    home, layered = Ask("home"), Ask("layered")
    named = Ask("home", ["item-6", "item-3", "nothing", "item-1", "item-0", "item-5"], 2, frozenset({"item-0"}))
    for k in range(8):  # with ε = 1/4 some of them explore
        await world.decided(f"ranked-{k}", home)
    await world.decided("candidates", named)
    await world.decided("together", Ask("greedy"), home, Ask("popular"))
    await world.decided("layer-known", layered)
    await world.decided("layer-anonymous", layered, arrange=lambda h: _known_as(h, Level.ANONYMOUS))
    await world.decided("layer-refused", layered, arrange=_refuse)
    await world.decided("cold", home, with_model=False)
    await world.decided(
        "no-consent", named, Ask("popular"), Ask("greedy", excluded_item_ids=frozenset({"item-1"})), arrange=_refuse
    )
    await world.decided("objected", home, gpc="1")
    await world.decided("nobody", named, arrange=lambda h: setattr(h.identity, "fails", DEAD))
    await world.decided("consent-away", home, gpc="1", arrange=lambda h: setattr(h.consent, "fails", DEAD))
    await world.decided("features-away", home, arrange=lambda h: setattr(h.features, "fails", DEAD))
    await world.decided("nothing-eligible", Ask("home", ["item-6", "nothing"]))
    await world.decided("holdout", home, arrange=lambda h: _bucket(h, 0))
    await world.decided("members", Ask("members"))
    await world.decided("off", Ask("off"))
    await world.decided("log-late", home, arrange=_uncertain)
    await world.recorded("recorded", propensities=[0.5, 0.25, 0.25])
    await world.recorded("recorded-unknown")
    await world.recorded("recorded-refused", allowed=())
    for stream in world.streams:
        stream["outcome"] = outcome_of_decision(newest_of(stream))
    model = world.model
    return {
        "seed_key": _text(KEYS.seed),
        "site_version": world.compiled.site.version,
        "site": _bytes(world.site),
        "feature_set": _bytes(world.feature_set),
        "catalog_version": 1,
        "items": [_bytes(item) for item in ITEMS],
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "feature_set_version": model.feature_set_version,
            "columns_count": model.columns_count,
            "onnx": _text(model.onnx),
        },
        "decisions": world.streams,
    }


def _refuse(harness: Harness) -> None:
    harness.consent.allowed = frozenset()


def _known_as(harness: Harness, level: Level) -> None:
    harness.identity.person = replace(harness.identity.person, level=level)


def _bucket(harness: Harness, bucket: int) -> None:
    harness.identity.person = replace(harness.identity.person, holdout_bucket=bucket)


def _uncertain(harness: Harness) -> None:
    harness.log = log = UncertainLog(harness.keys)
    harness.corrections = Corrections(log)
    harness.decide = Decide(
        serving=lambda: harness.serving,
        people=People(harness.identity, harness.consent, harness.features, log),
        drafting=Drafting(Scoring(), KEYS),
        log=log,
        corrections=harness.corrections,
        keys=KEYS,
        load=Load(),
        clock=FakeClock(NOW),
        budget_s_max=60.0,
    )


def cut_consent() -> dict[str, Any]:
    """The ledgers of two members, one of whom joined the other."""
    purposes = [
        consent_pb.Purpose(id=name, description=name, legal_basis=basis, owner="o", retention_days=30, version=2)
        for name, basis in [("ads", "consent"), ("profile", "consent"), ("measurement", "legitimate_interest")]
    ]
    declared = consent_pb.PublishPurposesRequest(
        purposes=purposes,
        jurisdictions=[consent_pb.Jurisdiction(id="us", regime=consent_pb.REGIME_OPT_OUT, opt_in_purposes=["ads"])],
    )
    start = datetime(2026, 11, 1, tzinfo=UTC)

    def at(day: float) -> datetime:
        return start + timedelta(days=day)

    def said(
        purpose: str, state: State, day: int, *, collected: float | None = None, version: int = 2, **more: Any
    ) -> Any:
        bare = state in (State.REVOKED, State.EXPIRED)
        when = at(day if collected is None else collected)
        collection = Collection(when, version, "policy-1", "2026-1", "en", "banner", "ab" * 32, "us")
        expires = {"expires_at": at(more["until"])} if "until" in more else {}
        return Answer(purpose, state, 0, at(day), collection=None if bare else collection, **expires)

    ledgers = {
        MEMBER: [
            said("ads", State.DENIED, 1),
            said("profile", State.GRANTED, 1, until=400),
            said("measurement", State.OBJECTED, 2),
            said("ads", State.GRANTED, 3),
            said("ads", State.REVOKED, 5),
            said("ads", State.GRANTED, 6, collected=4),
        ],
        OTHER_MEMBER: [
            said("profile", State.GRANTED, 2, until=8),
            said("ads", State.GRANTED, 2, version=1),
            said("profile", State.EXPIRED, 9, until=8),
        ],
    }
    events = []
    for member_id, answers in ledgers.items():
        for version, answer in enumerate(answers, 1):
            event_type, payload = encode_answer(replace(answer, version=version))
            events.append(_event(member_id, f"consent-{member_id}", version, event_type, payload, answer.recorded_at))
    history = {
        "declared": _bytes(declared),
        "events": events,
        "merged_at": at(7).isoformat(),
        "now": at(20).isoformat(),
    }
    return history | {"outcome": outcome_of_consent(history)}


def cut_links() -> dict[str, Any]:
    """Links as they are made, one of them taken back."""
    start = datetime(2026, 11, 1, tzinfo=UTC)
    statements = ["u1 a1", "u1 e1 d1", "u2 d1", "u2 a2", "a3 s1", "u1 a3", "p1 a4 f1", "u2 p1"]
    people: Persons = {}
    links: list[Link] = []
    events, rows = [], []
    for order, statement in enumerate(statements, 1):
        at = start + timedelta(hours=order)
        named = tuple(sorted(map(_pseudonym, statement.split()), key=lambda one: one.namespace.rank))
        new = Link(f"link-{order}", order, at, tuple(Named(one.namespace, one.member_id) for one in named))
        change = link(new, named, people)
        people, links = change.people, [*links, new]
        for version, fact in enumerate(change.facts, 1):
            events.append(_event(fact.subject_id, new.link_id, version, *encode_fact(fact), at))
        members = {one.member_id: one.namespace.name for one in named}
        rows.append({"link_id": new.link_id, "order": order, "linked_at": at.isoformat(), "members": members})
    taken_back = unlink("link-4", links)
    for version, fact in enumerate(taken_back.facts, 10):
        events.append(_event(fact.subject_id, "link-4", version, *encode_fact(fact), start + timedelta(days=1)))
    assert any(isinstance(fact, IdentityUnlinked) for fact in taken_back.facts)
    history = {"events": events, "rows": rows}
    return history | {"outcome": outcome_of_links(history)}


def _pseudonym(name: str) -> Pseudonym:
    """u1 → a user id, e1 → an e-mail; the member is named after it."""
    letters = {"u": "user_id", "e": "email_sha256", "p": "phone_sha256", "a": "anonymous_id", "d": "device_id"}
    namespace = NAMESPACES[(letters | {"s": "session_id", "f": "device_fingerprint"})[name[0]]]
    return Pseudonym(namespace, hashlib.sha256(name.encode()).digest(), name.ljust(26, "x"))


EVERY_KIND = """
features { name: "price" item_attribute { attribute: "price" transform: TRANSFORM_LOG1P } }
features { name: "tag" item_category { attribute: "tags" values: "red" values: "blue" } }
features { name: "clicks" item_count { event_type: "click" half_life_s: 86400 } }
features { name: "rate" item_rate { numerator: "click" denominator: "exposure" prior_strength: 10 } }
features { name: "tag_rate"
           category_rate { attribute: "tags" numerator: "click" denominator: "exposure" prior_strength: 2 } }
features { name: "my_clicks" purposes: "profile" subject_count { event_type: "click" half_life_s: 86400 } }
features { name: "my_rate" purposes: "profile"
           subject_rate { numerator: "click" denominator: "exposure" prior_strength: 2 prior_rate: 0.25 } }
features { name: "my_recency" purposes: "profile" subject_recency { event_type: "click" half_life_s: 86400 } }
features { name: "my_tags" purposes: "profile" category_affinity { attribute: "tags" numerator: "click"
           denominator: "exposure" buckets: 8 prior_strength: 1 } }
features { name: "like_mine" purposes: "profile" similarity { attributes: "tags" event_type: "click" dimensions: 8 } }
"""


def cut_features() -> dict[str, Any]:
    """The states that behavior adds up to, that behavior, and the set of features they were kept for."""
    declared = text_format.Parse(EVERY_KIND, feature_set_pb2.FeatureSet())
    compiled = _compiled(declared)
    start = datetime(2026, 11, 1, tzinfo=UTC)
    did = [
        (MEMBER, "exposure", ["item-0", "item-1", "item-2"], 1.0),
        (MEMBER, "click", ["item-1"], 1.25),
        (OTHER_MEMBER, "exposure", ["item-1", "item-4"], 2.0),
        (OTHER_MEMBER, "click", ["item-4", "not-in-the-catalog"], 2.5),
        (MEMBER, "click", ["item-2"], 0.5),
        ("", "click", ["item-2"], 3.0),
    ]
    events, behavior = [], []
    for number, (member_id, kind, item_ids, day) in enumerate(did, 1):
        at, stream_id = start + timedelta(days=day), f"stream-{number}"
        payload = feedback_events_pb2.BehaviorRecorded(type=kind, item_ids=item_ids).SerializeToString()
        event_type = feedback_events_pb2.BehaviorRecorded.DESCRIPTOR.full_name
        events.append(_event(member_id, stream_id, 1, event_type, payload, at) | {"position": [1, number, number]})
        position = LogPosition(1, number, number)
        behavior.append(Behavior(member_id, kind, tuple(item_ids), at.timestamp(), position, stream_id))
    members, blocks = MemberLayout.of(compiled.counted), ItemLayout.of(compiled.counted)
    known = {one.id: contribution(members, item_from_bytes(one.SerializeToString())) for one in ITEMS}
    states = {}
    for member_id in (MEMBER, OTHER_MEMBER):
        own = [event for event in behavior if event.member_id == member_id]
        state = fold(members, empty(members, member_id), own, lambda item_id, _: known.get(item_id))
        states[member_id] = _text(encode_member(members, state))
    folded = fold_items(blocks, {}, behavior)
    history = {
        "feature_set": _bytes(feature_set_to_pb(compiled, declared.features)),
        "items": [_bytes(item) for item in ITEMS],
        "events": events,
        "members": states,
        "blocks": [
            [item_id, part, _text(encode_block(blocks, one))] for (item_id, part), one in sorted(folded.items())
        ],
        "now": (start + timedelta(days=4)).isoformat(),
    }
    return history | {"outcome": outcome_of_features(history)}


def _compiled(declared: feature_set_pb2.FeatureSet) -> FeatureSet:
    for feature in declared.features:
        feature.description, feature.owner, feature.reason, feature.retention_days = "d", "o", "r", 30
    return compile_features([one for one in features_from_pb(declared.features) if one is not None])


def _event(
    subject_id: str, stream_id: str, version: int, event_type: str, payload: bytes, occurred_at: datetime
) -> dict[str, Any]:
    return {
        "subject_id": subject_id,
        "stream_id": stream_id,
        "version": version,
        "type": event_type,
        "payload": _text(payload),
        "occurred_at": occurred_at.isoformat(),
    }


def _bytes(message: Message) -> str:
    return _text(message.SerializeToString(deterministic=True))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main(name: str) -> None:
    """Cut all of them into a new folder."""
    folder = HISTORIES / name
    folder.mkdir()
    cuts = {
        "decisions": asyncio.run(cut_decisions()),
        "consent": cut_consent(),
        "links": cut_links(),
        "features": cut_features(),
    }
    for what, history in cuts.items():
        (folder / f"{what}.json").write_text(json.dumps(history, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
