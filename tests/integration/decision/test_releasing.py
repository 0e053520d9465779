"""Sites, items and models: all of a call or none, kept for ever, taken over by every replica."""

import asyncio
from typing import Any

import asyncpg
import pytest
from comity.common.v1.types_pb2 import LogPosition
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1 import site_pb2
from comity.features.v1.feature_set_pb2 import FeatureSet

from services.chassis.errors import Kind
from services.chassis.eventstore import recorded
from services.chassis.ids import content_hash
from tests.integration.decision.conftest import (
    FEATURE_SET,
    PROFILE,
    REGISTER_TIMEOUT_S,
    TIMEOUT_S,
    Deciding,
    Start,
    items,
    parts,
    site,
)
from tests.integration.decision.test_deciding import refusal, replayed
from tests.unit.decision.onnx_models import linear
from tests.waiting import eventually

WIDTH = len(FEATURE_SET.columns)
# What a busy machine may be late with; a model that is missing is not among it.
LATE = (
    events_pb.FALLBACK_REASON_DEADLINE_EXCEEDED,
    events_pb.FALLBACK_REASON_IDENTITY_UNAVAILABLE,
    events_pb.FALLBACK_REASON_CONSENT_UNAVAILABLE,
    events_pb.FALLBACK_REASON_FEATURES_UNAVAILABLE,
    events_pb.FALLBACK_REASON_LOG_UNAVAILABLE,
)


async def facts(deciding: Deciding, kind: str) -> list[Any]:
    """The events of a type, as messages."""
    connection = await asyncpg.connect(deciding.url)
    try:
        rows = await connection.fetch("SELECT * FROM events WHERE type LIKE '%.' || $1 ORDER BY position", kind)
    finally:
        await connection.close()
    return [getattr(events_pb, kind).FromString(recorded(row).payload) for row in rows]


async def test_a_site_is_applied_once_and_described(deciding: Deciding) -> None:
    """The same site again changes nothing; another one is another version, and both are facts."""
    described = await deciding.catalog.DescribeSite(pb.DescribeSiteRequest(), timeout=TIMEOUT_S)
    bound = site()
    bound.feature_set_digest = content_hash(FEATURE_SET.SerializeToString(deterministic=True))
    assert (described.site, described.items_count) == (bound, 8)
    assert not (await deciding.apply(site())).changed
    changed = await deciding.apply(site(epsilon=0.5))
    assert changed.changed
    assert changed.site_version != described.site_version
    back = await deciding.apply(site())
    assert (back.changed, back.site_version) == (True, described.site_version)
    assert [fact.site_version for fact in await facts(deciding, "SiteApplied")] == [
        described.site_version,
        changed.site_version,
        described.site_version,
    ]


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"eligibility": "item.prize > 1.0"}, "site.policies[0].eligibility", "line 1, column 5"),
        ({"eligibility": "item.attributes.exists(k, true)"}, "site.policies[0].eligibility", "item.categories"),
        ({"popular_by": "visits"}, "site.policies[0].popular_by", "item column"),
        ({"ranker": site_pb2.Ranker(column="nothing")}, "site.policies[0].ranker.column", "features.yaml"),
        ({"id": "other"}, "site.placements[0].policy_id", "other"),
    ],
)
async def test_an_invalid_site_is_refused_whole(
    deciding: Deciding, changes: dict[str, Any], field: str, said: str
) -> None:
    """The one before still decides."""
    request = pb.ApplySiteRequest(site=site(**changes), feature_set=FEATURE_SET)
    error = await refusal(deciding.catalog.ApplySite(request, timeout=TIMEOUT_S))
    assert error.problems[0].field == field
    assert said in error.problems[0].problem
    assert not (await deciding.apply(site())).changed


async def test_validation_changes_nothing(deciding: Deciding) -> None:
    """A site and items that are only checked leave no trace."""
    before = await deciding.catalog.DescribeSite(pb.DescribeSiteRequest(), timeout=TIMEOUT_S)
    assert (await deciding.apply(site(epsilon=0.9), validate_only=True)).changed
    await deciding.catalog.UpsertItems(
        pb.UpsertItemsRequest(items=[site_pb2.Item(id="new")], validate_only=True), timeout=TIMEOUT_S
    )
    assert await deciding.catalog.DescribeSite(pb.DescribeSiteRequest(), timeout=TIMEOUT_S) == before


async def test_a_site_without_its_feature_set_is_refused(deciding: Deciding) -> None:
    """There is nothing to check it against."""
    error = await refusal(deciding.catalog.ApplySite(pb.ApplySiteRequest(site=site()), timeout=TIMEOUT_S))
    assert error.problems[0].field == "feature_set"


async def test_a_feature_set_that_was_not_published_is_not_used(deciding: Deciding) -> None:
    """Without its purposes a column would be read of people who revoked them: the published set decides."""
    deciding.around.refused.add(PROFILE)
    cleared = FeatureSet()
    cleared.CopyFrom(FEATURE_SET)
    for column in cleared.columns:
        del column.purposes[:]
    request = pb.ApplySiteRequest(site=site(epsilon=0.0), feature_set=cleared)
    applied = await deciding.catalog.ApplySite(request, timeout=TIMEOUT_S)
    assert applied.site_version == (await deciding.apply(site(epsilon=0.0))).site_version
    stored = await asyncpg.connect(deciding.url)
    kept = await stored.fetchval("SELECT feature_set FROM sites WHERE site_version = $1", applied.site_version)
    await stored.close()
    assert FeatureSet.FromString(kept) == FEATURE_SET
    cleared.version = "features-2"
    of_another = site()
    of_another.feature_set_version = cleared.version
    request = pb.ApplySiteRequest(site=of_another, feature_set=cleared)
    error = await refusal(deciding.catalog.ApplySite(request, timeout=TIMEOUT_S))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "FEATURE_SET_UNKNOWN")
    deciding.around.down.add("features")
    error = await refusal(deciding.catalog.ApplySite(request, timeout=TIMEOUT_S))
    assert error.kind is Kind.UNAVAILABLE


async def test_the_whole_feature_set_is_part_of_the_sites_version(deciding: Deciding) -> None:
    """A set that says something else under the same version makes another site, and the one before still loads."""
    before = await deciding.apply(site(epsilon=0.0))
    corrected = FeatureSet()
    corrected.CopyFrom(FEATURE_SET)
    corrected.features.add(name="clicks", description="as people should read it")
    deciding.around.published[FEATURE_SET.version] = corrected
    after = await deciding.apply(site(epsilon=0.0))
    assert after.changed
    assert after.site_version != before.site_version
    assert (await deciding.decide()).versions.site == after.site_version


async def test_a_model_of_another_feature_set_is_not_active(deciding: Deciding) -> None:
    """It stays the one that was chosen for its name, and the list says that it stopped fitting."""
    await deciding.learn()
    other = FeatureSet()
    other.CopyFrom(FEATURE_SET)
    other.version = "features-2"
    deciding.around.published[other.version] = other
    changed = site()
    changed.feature_set_version = other.version
    request = pb.ApplySiteRequest(site=changed, feature_set=other)
    await deciding.catalog.ApplySite(request, timeout=TIMEOUT_S)
    (model,) = (await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)).models
    assert (model.active, model.stopped_fitting) == (False, True)
    await deciding.apply(site())
    (model,) = (await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)).models
    assert (model.active, model.stopped_fitting) == (True, False)


async def test_items_enter_change_and_retire(deciding: Deciding) -> None:
    """Each change is a version and a fact; what is as it was is neither."""
    same = await deciding.catalog.UpsertItems(pb.UpsertItemsRequest(items=items()), timeout=TIMEOUT_S)
    assert same.catalog_version == "1"
    retired = [site_pb2.Item(id=item.id, retired=True) for item in items()[:6]]
    changed = await deciding.catalog.UpsertItems(pb.UpsertItemsRequest(items=retired), timeout=TIMEOUT_S)
    assert changed.catalog_version == "2"
    assert changed.position.position > same.position.position
    answer = await deciding.decide()
    assert answer.fallback_reason == events_pb.FALLBACK_REASON_NO_ELIGIBLE_CANDIDATES
    changes = await facts(deciding, "CatalogChanged")
    assert [(fact.catalog_version, len(fact.items)) for fact in changes] == [("1", 8), ("2", 6)]


async def test_a_retired_item_is_shown_nowhere_and_its_past_replays(deciding: Deciding) -> None:
    """Not as a candidate that is named either; it stays listed, and what was shown of it stays true."""
    await deciding.learn()
    before = await deciding.decide()
    shown = [entry.item_id for entry in before.slate.entries]
    retired = [site_pb2.Item(id=item.id, numbers=item.numbers, retired=item.id in shown) for item in items()]
    await deciding.catalog.UpsertItems(pb.UpsertItemsRequest(items=retired), timeout=TIMEOUT_S)
    for asked in ([], shown):
        after = await deciding.decide(candidate_ids=asked)
        answered = [*after.slate.entries, *after.fallback.entries]
        assert not {entry.item_id for entry in answered}.intersection(shown)
    listed = [item async for page in deciding.catalog.ListItems(pb.ListItemsRequest()) for item in page.items]
    assert {item.id for item in listed if item.retired} == set(shown)
    assert len(listed) == 8
    assert (await replayed(deciding, before.decision_id)).identical


@pytest.fixture
def few_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that considers few items."""
    monkeypatch.setenv("COMITY_DECISION_OFFERED_MAX", "4")


@pytest.mark.usefixtures("few_offered")
async def test_how_many_of_the_eligible_items_are_considered_is_told(deciding: Deciding) -> None:
    """By the site's description and by the explanation of a decision; not of one whose candidates were named."""
    described = await deciding.catalog.DescribeSite(pb.DescribeSiteRequest(), timeout=TIMEOUT_S)
    (offer,) = described.offers
    assert (offer.placement_id, offer.considered_count, offer.eligible_count, offer.cut_by) == (
        "home_hero",
        4,
        6,
        "clicks",
    )
    told = []
    for asked in ([], ["item-1", "item-2"]):
        answer = await deciding.decide(candidate_ids=asked)
        request = pb.ExplainRequest(decision_id=answer.decision_id)
        explained = await deciding.decision.Explain(request, timeout=TIMEOUT_S)
        told.append(next(step.finding for step in explained.steps if step.stage == "eligible"))
    assert "the first 4 of 6 eligible items by clicks, bounded by COMITY_DECISION_OFFERED_MAX" in told[0]
    assert told[1] == "2 of 2 candidates"


async def test_an_item_twice_in_a_call_is_refused(deciding: Deciding) -> None:
    """Which of the two would stand?"""
    request = pb.UpsertItemsRequest(items=[site_pb2.Item(id="a"), site_pb2.Item(id="a")])
    error = await refusal(deciding.catalog.UpsertItems(request, timeout=TIMEOUT_S))
    assert error.problems[0].field == "items[1].id"


async def test_many_large_items_make_several_facts(deciding: Deciding) -> None:
    """An event stays small enough to travel; all of them belong to one version."""
    large = [
        site_pb2.Item(
            id=f"large-{k}", categories={"tags": site_pb2.Categories(values=[f"{n:060d}" for n in range(60)])}
        )
        for k in range(100)
    ]
    await deciding.catalog.UpsertItems(pb.UpsertItemsRequest(items=large), timeout=TIMEOUT_S)
    changes = (await facts(deciding, "CatalogChanged"))[1:]
    assert len(changes) > 1
    assert {fact.catalog_version for fact in changes} == {"2"}
    assert sum(len(fact.items) for fact in changes) == 100


async def test_every_replica_follows_within_a_second(start: Start, deciding: Deciding) -> None:
    """Site, items and model that one replica took in decide on the other, without a restart."""
    other = await start()
    await other.with_columns()
    version = await deciding.learn()
    await deciding.apply(site(epsilon=0.0))

    async def follows() -> bool:
        answer = await other.decide()
        return (answer.versions.model, answer.reason) == (version, events_pb.REASON_RANKED)

    await eventually(follows)


async def test_calls_go_on_while_models_are_swapped(deciding: Deciding) -> None:
    """No call is dropped, and each is answered by one model or the other."""
    versions = {await deciding.learn()}
    stop = asyncio.Event()

    async def ask_on() -> set[str]:
        seen = set()
        while not stop.is_set():
            answer = await deciding.decide()
            # A busy machine may be late with anything but the model.
            if answer.fallback_reason not in LATE:
                seen.add(answer.versions.model)
        return seen

    asking = asyncio.create_task(ask_on())
    for k in range(3):
        versions.add(await deciding.learn(linear(WIDTH, weights=[1.0 + k] * WIDTH)))
    stop.set()
    assert set() < await asking <= versions


async def test_models_are_listed_with_the_active_one_marked(deciding: Deciding) -> None:
    """Registering again changes nothing."""
    version = await deciding.learn()
    await deciding.register(linear(WIDTH, weights=[3.0] * WIDTH))
    assert (await deciding.register(linear(WIDTH))).already_registered
    listed = (await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)).models
    assert [(f"{model.name}@{model.sha256}" == version, model.active) for model in listed] == [
        (True, True),
        (False, False),
    ]
    assert listed[0].metrics == {"ndcg": 0.5}
    assert len(await facts(deciding, "ModelRegistered")) == 2
    assert len(await facts(deciding, "ModelActivated")) == 1


async def test_a_registered_model_is_given_out_and_when_it_was_activated(deciding: Deciding) -> None:
    """The very bytes; of models that decided in turn the order is known, of one that never did that it did not."""
    sent = linear(WIDTH).SerializeToString()
    first = (await deciding.learn()).partition("@")[2]
    second = (await deciding.learn(linear(WIDTH, weights=[2.0] * WIDTH))).partition("@")[2]
    await deciding.register(linear(WIDTH, weights=[3.0] * WIDTH))
    request = pb.GetModelRequest(name="ranker", sha256=first)
    assert b"".join([part.chunk async for part in deciding.release.GetModel(request)]) == sent
    request.sha256 = "0" * 64
    assert (await refusal(anext(aiter(deciding.release.GetModel(request))))).reason == "MODEL_UNKNOWN"

    async def activated() -> dict[str, int]:
        listed = (await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)).models
        return {model.sha256: model.activated_at.ToNanoseconds() for model in listed}

    before = await activated()
    assert sorted(before.values())[0] == 0 < before[first] < before[second]
    again = pb.ActivateModelRequest(name="ranker", sha256=first)
    await deciding.release.ActivateModel(again, timeout=TIMEOUT_S)
    assert (await activated())[first] > before[second]


@pytest.mark.parametrize(
    ("header", "field", "said"),
    [
        ({"sha256": "0" * 64}, "header.sha256", "again"),
        ({"feature_set_version": "other"}, "header.feature_set_version", "features-1"),
        ({"columns": ["clicks"]}, "header.columns", "4"),
        ({"columns": ["clicks", "affinity", "visits", "hour"]}, "header.columns", "column 1 must be visits"),
    ],
)
async def test_a_model_that_was_announced_wrongly_is_refused(
    deciding: Deciding, header: dict[str, Any], field: str, said: str
) -> None:
    """Nothing of it is kept."""
    sent = iter(parts(linear(WIDTH).SerializeToString(), **header))
    error = await refusal(deciding.release.RegisterModel(sent, timeout=TIMEOUT_S))
    assert error.problems[0].field == field
    assert said in error.problems[0].problem
    assert not (await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)).models


async def test_a_model_of_the_wrong_shape_is_refused(deciding: Deciding) -> None:
    """The file is looked at, not only its announcement."""
    sent = iter(parts(linear(WIDTH + 2).SerializeToString()))
    error = await refusal(deciding.release.RegisterModel(sent, timeout=REGISTER_TIMEOUT_S))
    assert (error.reason, error.problems[0].field) == ("MODEL_REFUSED", "model")


@pytest.mark.parametrize("sent", [[], parts(b"abc")[1:], parts(b"abc")[:1], [parts(b"")[0], parts(b"")[0]]])
async def test_a_stream_out_of_order_is_refused(deciding: Deciding, sent: list[pb.RegisterModelRequest]) -> None:
    """Header first and once, then chunks."""
    error = await refusal(deciding.release.RegisterModel(iter(sent), timeout=TIMEOUT_S))
    assert error.problems[0].field in ("header", "chunk")


async def test_an_unknown_model_is_not_activated(deciding: Deciding) -> None:
    """Activation names a registered file."""
    request = pb.ActivateModelRequest(name="ranker", sha256="0" * 64)
    assert (await refusal(deciding.release.ActivateModel(request, timeout=TIMEOUT_S))).reason == "MODEL_UNKNOWN"


async def test_waiting_for_columns_that_do_not_come_ends_with_the_deadline(deciding: Deciding) -> None:
    """The caller is told what was waited for."""
    request = pb.AwaitItemColumnsRequest(behavior_position=LogPosition(epoch=99))
    error = await refusal(deciding.catalog.AwaitItemColumns(request, timeout=0.3))
    assert error.kind.value == "DEADLINE_EXCEEDED"


async def test_before_a_site_everything_says_so(start: Start) -> None:
    """A new installation explains itself."""
    fresh = await start()
    for call in (
        fresh.catalog.DescribeSite(pb.DescribeSiteRequest(), timeout=TIMEOUT_S),
        fresh.release.RegisterModel(iter(parts(b"abc")), timeout=TIMEOUT_S),
    ):
        assert (await refusal(call)).reason == "SITE_NOT_APPLIED"


async def test_rows_that_cannot_be_read_stop_no_decision(deciding: Deciding) -> None:
    """An item and a site that are broken are put aside and not served; what can be read goes on deciding."""
    connection = await asyncpg.connect(deciding.url)
    try:
        await connection.execute(
            "INSERT INTO items (item_id, catalog_version, item) SELECT 'poison', catalog_version + 1, 'no item' "
            "FROM standing; UPDATE standing SET catalog_version = catalog_version + 1"
        )
        await connection.execute(
            "INSERT INTO sites (site_version, site, feature_set) VALUES ('poison', 'no site', 'no set'); "
            "UPDATE standing SET site_version = 'poison'"
        )

        async def put_aside() -> bool:
            return bool(await connection.fetchval("SELECT count(DISTINCT channel) = 2 FROM dead_letters"))

        await eventually(put_aside)
    finally:
        await connection.close()
    assert (await deciding.decide()).decision_id
