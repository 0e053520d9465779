"""Applying a bundle: everybody validates before anybody publishes, and the site comes last."""

import copy
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import feature_set_pb2 as feature_set_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.bundle import apply_bundle, load_bundle
from cli.bundle.applying import BYTES_A_CALL, ITEMS_A_CALL, _batches
from services.chassis import rpc_client
from services.chassis.errors import FieldProblem, Kind, ServiceError, invalid

PARTS = ["purposes", "placeholders", "events", "features", "items", "site"]
SHOP = Path(__file__).parents[3] / "examples" / "shop"


class FakeServices:
    """Every service of a bundle in one object; writes down what it is asked, and refuses what it is told to."""

    def __init__(self, *, refuse: dict[str, ServiceError] | None = None) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.refuse = refuse or {}
        self.site: decision_pb.ApplySiteRequest | None = None
        self.awaited = 0
        self.held: list[site_pb.Item] = []
        self.items: dict[str, site_pb.Item] = {}
        self.described = decision_pb.DescribeSiteResponse()
        self.identity = self.consent = self.feedback = self.features = self.catalog = self.release = self
        self.placeholders: list[str] = []
        self.models: list[decision_pb.RegisteredModel] = []

    @property
    def published(self) -> list[str]:
        """What was asked for in earnest, in order."""
        return [name for name, validate_only in self.asked if not validate_only]

    def _ask(self, name: str, request: Any) -> None:
        self.asked.append((name, request.validate_only))
        if name in self.refuse:
            raise self.refuse[name]

    async def DescribeSite(self, request: Any, timeout: float) -> Any:  # noqa: N802
        if not self.described.site_version:
            raise ServiceError(Kind.FAILED_PRECONDITION, "NO_SITE", "no site was applied yet")
        return self.described

    async def PublishPurposes(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self._ask("purposes", request)
        return consent_pb.PublishPurposesResponse(policy_version="p1")

    async def PublishPlaceholders(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self._ask("placeholders", request)
        changed = not request.validate_only and self.placeholders != list(request.values)
        self.placeholders = self.placeholders if request.validate_only else list(request.values)
        return identity_pb.PublishPlaceholdersResponse(version="n1", changed=changed)

    async def PublishEventSchemas(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self._ask("events", request)
        return feedback_pb.PublishEventSchemasResponse(version="e1")

    async def PublishFeatureSet(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self._ask("features", request)
        return features_pb.PublishFeatureSetResponse(feature_set=feature_set_pb.FeatureSet(version="f1"))

    async def UpsertItems(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self._ask("items", request)
        self.items.update({} if request.validate_only else {item.id: item for item in request.items})
        position = types_pb.LogPosition(position=9)
        return decision_pb.UpsertItemsResponse(catalog_version="c1", position=position)

    async def ListItems(self, request: Any, timeout: float) -> AsyncIterator[decision_pb.ListItemsResponse]:  # noqa: N802
        for start in range(0, len(self.held), 2):
            yield decision_pb.ListItemsResponse(items=self.held[start : start + 2])

    async def AwaitItemColumns(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self.awaited = request.catalog_position.position
        return decision_pb.AwaitItemColumnsResponse()

    async def ListModels(self, request: Any, timeout: float) -> Any:  # noqa: N802
        return decision_pb.ListModelsResponse(models=self.models)

    async def ApplySite(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self._ask("site", request)
        self.site = request
        return decision_pb.ApplySiteResponse(site_version="s1", changed=self.described.site_version != "s1")


async def test_all_validate_and_then_all_publish_with_the_site_last() -> None:
    """Nothing is published before the last service has validated, and the site is the activation."""
    services: Any = FakeServices()
    applied = await apply_bundle(load_bundle(SHOP), services)
    assert services.asked[: len(PARTS)] == [(name, True) for name in PARTS]
    assert services.published == PARTS
    assert applied.versions == dict(zip(PARTS, ("p1", "n1", "e1", "f1", "c1", "s1"), strict=True))
    assert services.site.site.feature_set_version == "f1"
    assert services.site.site.consent_policy_version == "p1"
    # From events/exposure.yaml: what a Decide with consent signals asks for, too.
    assert list(services.site.site.exposure_purposes) == ["measurement"]
    assert services.site.feature_set.version == "f1"
    assert services.awaited == 9, "apply returns when the items are decided with"


async def test_what_did_not_change_is_said_to_be_unchanged() -> None:
    """Versions are content hashes: the same bundle again changes nothing, and apply says so."""
    services: Any = FakeServices()
    services.described = decision_pb.DescribeSiteResponse(
        site=site_pb.Site(consent_policy_version="p1", feature_set_version="f1"),
        site_version="s1",
        catalog_version="c1",
    )
    applied = await apply_bundle(load_bundle(SHOP), services)
    assert applied.changed == {name: None if name == "events" else False for name in PARTS}


async def test_placeholders_of_the_site_go_to_identity_and_nowhere_else(tmp_path: Path) -> None:
    """site.yaml adds to the values that name nobody; what decides has no use for them."""
    shutil.copytree(SHOP, tmp_path / "site")
    with (tmp_path / "site" / "site.yaml").open("a") as file:
        file.write("placeholders: [kiosk, test]\n")
    services: Any = FakeServices()
    applied = await apply_bundle(load_bundle(tmp_path / "site"), services)
    assert services.placeholders == ["kiosk", "test"]
    assert applied.changed["placeholders"]
    assert list(services.site.site.placeholders) == []


async def test_items_that_the_bundle_has_not_are_named_and_retired_only_on_request() -> None:
    """They are what the catalog holds of them, retired; those that are retired already are nobody's business."""
    bundle = load_bundle(SHOP)
    gone = site_pb.Item(id="velvet-cape", title="Velvet cape", numbers={"price": 7.0})
    services: Any = FakeServices()
    services.held = [
        *(item.message for item in bundle.items),
        copy.copy(gone),
        site_pb.Item(id="long-gone", retired=True),
    ]
    applied = await apply_bundle(bundle, services)
    assert (applied.missing, applied.retired) == (["velvet-cape"], [])
    assert "velvet-cape" not in services.items
    applied = await apply_bundle(bundle, services, retire_missing=True)
    assert (applied.missing, applied.retired) == ([], ["velvet-cape"])
    gone.retired = True
    assert services.items["velvet-cape"] == gone
    assert "long-gone" not in services.items


class OlderDecision(FakeServices):
    """Decision of a release that has no ListItems."""

    async def ListItems(self, request: Any, timeout: float) -> AsyncIterator[decision_pb.ListItemsResponse]:  # noqa: N802
        raise ServiceError(Kind.INTERNAL, "RPC_UNIMPLEMENTED", "decision.ListItems: Method not found!")
        yield decision_pb.ListItemsResponse()


async def test_older_decision_is_applied_to_without_what_it_does_not_tell() -> None:
    """While two releases run side by side the bundle is published; which items are missing is said to be unknown."""
    services: Any = OlderDecision()
    applied = await apply_bundle(load_bundle(SHOP), services)
    assert (applied.missing, applied.retired) == (None, [])
    assert services.published == PARTS
    services = OlderDecision()
    with pytest.raises(ServiceError, match="cannot be retired") as refused:
        await apply_bundle(load_bundle(SHOP), services, retire_missing=True)
    assert (refused.value.reason, services.published) == ("ITEMS_NOT_LISTED", [])


async def test_a_bundle_without_items_says_nothing_about_those_there_are() -> None:
    """A site may keep its items elsewhere: none of them is missing, and none is retired."""
    services: Any = FakeServices()
    services.held = [site_pb.Item(id="tea-towel")]
    applied = await apply_bundle(replace(load_bundle(SHOP), items=(), items_given=False), services, retire_missing=True)
    assert (applied.missing, applied.retired, services.items) == ([], [], {})


async def test_a_model_that_would_stop_fitting_is_a_refusal_unless_forced() -> None:
    """Nothing is published, and what to do is said; forced, the model is named in what apply did."""
    services: Any = FakeServices()
    name = next(policy.message.ranker.model for policy in load_bundle(SHOP).policies if policy.message.ranker.model)
    services.models = [
        decision_pb.RegisteredModel(name=name, feature_set_version="f0", active=True),
        decision_pb.RegisteredModel(name="unnamed", feature_set_version="f0", active=True),
        decision_pb.RegisteredModel(name=name, feature_set_version="f0"),
    ]
    with pytest.raises(ServiceError, match=f"comity train {name}") as caught:
        await apply_bundle(load_bundle(SHOP), services)
    assert caught.value.reason == "MODELS_STOP_FITTING"
    assert services.published == []
    assert (await apply_bundle(load_bundle(SHOP), services, force=True)).stopped_fitting == [name]
    assert services.published != []


async def test_a_model_that_fits_is_no_refusal() -> None:
    """It reads the features that the bundle declares."""
    services: Any = FakeServices()
    name = next(policy.message.ranker.model for policy in load_bundle(SHOP).policies if policy.message.ranker.model)
    services.models = [decision_pb.RegisteredModel(name=name, feature_set_version="f1", active=True)]
    assert (await apply_bundle(load_bundle(SHOP), services)).stopped_fitting == []


@pytest.mark.parametrize("refusing", PARTS)
async def test_when_one_service_refuses_nothing_is_published(refusing: str) -> None:
    """Whichever service refuses, no other has taken anything."""
    services: Any = FakeServices(refuse={refusing: invalid("field", "is wrong; mend it")})
    with pytest.raises(ServiceError, match="nothing was published") as caught:
        await apply_bundle(load_bundle(SHOP), services)
    assert services.published == []
    assert caught.value.reason == "BUNDLE_REFUSED"
    assert caught.value.problems == (FieldProblem("field", "is wrong; mend it"),)


async def test_the_problems_of_all_services_are_told_at_once() -> None:
    """A person mends everything in one go."""
    refusals = {"purposes": invalid("purposes[0]", "a"), "events": invalid("schemas[0]", "b")}
    services: Any = FakeServices(refuse=refusals)
    with pytest.raises(ServiceError) as caught:
        await apply_bundle(load_bundle(SHOP), services)
    assert [problem.field for problem in caught.value.problems] == ["purposes[0]", "schemas[0]"]


async def test_an_outage_while_validating_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that goes on not answering is said to be down, and nothing is published."""
    monkeypatch.setattr(rpc_client, "PAUSE_S", 0.0)
    down = ServiceError(Kind.UNAVAILABLE, "DOWN", "features does not answer")
    services: Any = FakeServices(refuse={"features": down})
    with pytest.raises(ServiceError) as caught:
        await apply_bundle(load_bundle(SHOP), services)
    assert (caught.value.kind, caught.value.reason) == (down.kind, down.reason)
    assert [name for name, _ in services.asked].count("features") == rpc_client.TRIES_MAX
    assert services.published == []


def test_a_large_catalog_goes_in_calls_that_keep_the_limits() -> None:
    """No call holds more items or bytes than UpsertItems takes, and no item is lost or doubled."""
    items = [site_pb.Item(id=f"item-{i}", title="x" * (i % 200)) for i in range(2 * ITEMS_A_CALL + 1)]
    items += [site_pb.Item(id=f"large-{i}", numbers={f"n{k}": 1.0 for k in range(4000)}) for i in range(30)]
    batches = list(_batches(items))
    assert [item.id for batch in batches for item in batch] == [item.id for item in items]
    for batch in batches:
        assert len(batch) <= ITEMS_A_CALL
        assert decision_pb.UpsertItemsRequest(items=batch).ByteSize() <= BYTES_A_CALL
