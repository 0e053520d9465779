"""A checked bundle → the running services: all of them validate it, then it is published in order.

The site is the activation and comes last: until then the services hold versions that nobody uses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import feature_set_pb2 as feature_set_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from cli.bundle.bundle import Bundle
from cli.connections import Services
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call_again, stream, tried_again

# Compiling a site and its features is milliseconds; the rest is a busy machine.
CALL_TIMEOUT_S = 30.0
# A large catalog is many pages.
LIST_TIMEOUT_S = 300.0
# Bounds of one UpsertItems: its limit of items, and its limit of bytes less what wraps them.
ITEMS_A_CALL = 500
BYTES_A_CALL = 900_000

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Applied:
    """What apply did.

    Args:
        versions: part (purposes, placeholders, events, features, items, site) → content hash.
        changed: parts that are not as they were; None where the service does not say what was there before.
        missing: ids of items that the catalog has and shows and the bundle has not; None: decision is of a release that
            does not say.
        retired: ids of those that were retired, which are not shown any more.
        offers: how much of what is eligible a request without candidates chooses from, one a placement.
        stopped_fitting: models that ranked and do not any more, because they read other features.
    """

    versions: Mapping[str, str]
    changed: Mapping[str, bool | None]
    missing: Sequence[str] | None
    retired: Sequence[str]
    offers: Sequence[decision_pb.PlacementOffer]
    stopped_fitting: Sequence[str]


async def apply_bundle(
    bundle: Bundle,
    services: Services,
    *,
    retire_missing: bool = False,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Applied:
    """Validate on every service, then publish; returns when the site decides, with all its items.

    Args:
        retire_missing: retire what the catalog has and the bundle has not: it is not shown any more.
        force: also where active models stop fitting.

    Raises:
        ServiceError: INVALID (BUNDLE_REFUSED) with the problems of every service that refuses it, or
            FAILED_PRECONDITION (MODELS_STOP_FITTING, ITEMS_NOT_LISTED), and nothing was published; or as a service
            raised it.
    """
    progress("validating on every service")
    before = await _described(services)
    stopped_fitting = await _stop_fitting(bundle, services, await _validate(bundle, services))
    if stopped_fitting and not force:
        raise _stops_fitting(stopped_fitting)
    missing = await _missing(bundle, services)
    if missing is None and retire_missing:
        raise _not_listed()
    retiring = [_retired(item) for item in missing or ()] if retire_missing else []
    progress("publishing")
    purposes = await call_again(services.consent.PublishPurposes, bundle.consent(), CALL_TIMEOUT_S)
    placeholders = await call_again(services.identity.PublishPlaceholders, bundle.identity(), CALL_TIMEOUT_S)
    schemas = await call_again(services.feedback.PublishEventSchemas, _schemas(bundle), CALL_TIMEOUT_S)
    features = await call_again(services.features.PublishFeatureSet, _features(bundle), CALL_TIMEOUT_S)
    catalog_version, entered = before.catalog_version, decision_pb.AwaitItemColumnsRequest()
    for batch in _batches([*(item.message for item in bundle.items), *retiring]):
        answer = await call_again(
            services.catalog.UpsertItems, decision_pb.UpsertItemsRequest(items=batch), CALL_TIMEOUT_S
        )
        catalog_version = answer.catalog_version
        entered.catalog_position.CopyFrom(answer.position)
    site = _site(bundle, features.feature_set, purposes.policy_version)
    applied = await call_again(services.catalog.ApplySite, site, CALL_TIMEOUT_S)
    progress("waiting until it decides")
    await call_again(services.catalog.AwaitItemColumns, entered, CALL_TIMEOUT_S)
    described = await _described(services)
    versions = {
        "purposes": purposes.policy_version,
        "placeholders": placeholders.version,
        "events": schemas.version,
        "features": features.feature_set.version,
        "items": catalog_version,
        "site": applied.site_version,
    }
    changed = {
        "purposes": purposes.policy_version != before.site.consent_policy_version,
        "placeholders": placeholders.changed,
        "events": None,
        "features": features.feature_set.version != before.site.feature_set_version,
        "items": catalog_version != before.catalog_version,
        "site": applied.changed,
    }
    ids = None if missing is None else [item.id for item in missing]
    return Applied(
        versions,
        changed,
        missing=[] if retire_missing else ids,
        retired=(ids or []) if retire_missing else [],
        offers=described.offers,
        stopped_fitting=stopped_fitting,
    )


async def _stop_fitting(bundle: Bundle, services: Services, feature_set_version: str) -> list[str]:
    """Names of the models that rank now, that policies of the bundle name, and that read other features than these."""
    named = {policy.message.ranker.model for policy in bundle.policies}
    listed = await call_again(services.release.ListModels, decision_pb.ListModelsRequest(), CALL_TIMEOUT_S)
    return [
        model.name
        for model in listed.models
        if model.active and model.name in named and model.feature_set_version != feature_set_version
    ]


def _stops_fitting(names: Sequence[str]) -> ServiceError:
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        "MODELS_STOP_FITTING",
        f"nothing was published: features.yaml makes other numbers than {', '.join(names)} learned from, and popular "
        "items are shown where no model fits. Keep the features as they were, or apply with --force and train again: "
        f"{'; '.join(f'comity train {name}' for name in names)}",
    )


def _not_listed() -> ServiceError:
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        "ITEMS_NOT_LISTED",
        "nothing was published: a replica of decision is of a release that does not list its items, so those that are "
        "missing from the bundle cannot be retired; update it, or apply without --retire-missing",
    )


async def _missing(bundle: Bundle, services: Services) -> list[site_pb.Item] | None:
    """Items that may be shown and are not in the bundle; none where the bundle says nothing of items.

    None where the replica that is asked is of a release that cannot list them.
    """
    if not bundle.items_given:
        return []
    declared = {item.message.id for item in bundle.items}

    async def read() -> list[site_pb.Item]:
        pages = stream(services.catalog.ListItems, decision_pb.ListItemsRequest(), LIST_TIMEOUT_S)
        return [item async for page in pages for item in page.items if not item.retired and item.id not in declared]

    try:
        return await tried_again("decision.ListItems", read)
    except ServiceError as error:
        if error.reason == "RPC_UNIMPLEMENTED":
            return None
        raise


def _retired(item: site_pb.Item) -> site_pb.Item:
    retired = site_pb.Item()
    retired.CopyFrom(item)
    retired.retired = True
    return retired


async def _described(services: Services) -> decision_pb.DescribeSiteResponse:
    """What is applied now; empty when nothing ever was."""
    try:
        return await call_again(services.catalog.DescribeSite, decision_pb.DescribeSiteRequest(), CALL_TIMEOUT_S)
    except ServiceError as error:
        if error.kind in (Kind.NOT_FOUND, Kind.FAILED_PRECONDITION):
            return decision_pb.DescribeSiteResponse()
        raise


async def _validate(bundle: Bundle, services: Services) -> str:
    """Ask every service, also after one has refused, so that a person mends everything at once.

    Returns:
        The version that the features would have.
    """
    refused = _Refused()
    purposes = await refused.ask(services.consent.PublishPurposes, bundle.consent(validate_only=True))
    await refused.ask(services.identity.PublishPlaceholders, bundle.identity(validate_only=True))
    await refused.ask(services.feedback.PublishEventSchemas, _schemas(bundle, validate_only=True))
    features = await refused.ask(services.features.PublishFeatureSet, _features(bundle, validate_only=True))
    for batch in _batches([item.message for item in bundle.items]):
        request = decision_pb.UpsertItemsRequest(items=batch, validate_only=True)
        await refused.ask(services.catalog.UpsertItems, request)
    if features is not None:  # without features there is nothing to check the site against
        version = purposes.policy_version if purposes is not None else ""
        site = _site(bundle, features.feature_set, version, validate_only=True)
        await refused.ask(services.catalog.ApplySite, site)
    refused.raise_any()
    assert features is not None, "nobody refused"
    return str(features.feature_set.version)


class _Refused:
    """Asks services and keeps their refusals; outages are raised at once."""

    def __init__(self) -> None:
        self._errors: list[ServiceError] = []

    async def ask(self, method: Any, request: Any) -> Any | None:
        """The answer, or None when it is a refusal."""
        try:
            return await call_again(method, request, CALL_TIMEOUT_S)
        except ServiceError as error:
            if error.kind not in (Kind.INVALID, Kind.FAILED_PRECONDITION, Kind.ALREADY_EXISTS, Kind.NOT_FOUND):
                raise
            self._errors.append(error)
            return None

    def raise_any(self) -> None:
        """Returns when nobody refused."""
        if self._errors:
            problems = tuple(problem for error in self._errors for problem in error.problems)
            text = "; ".join(error.message for error in self._errors)
            raise ServiceError(Kind.INVALID, "BUNDLE_REFUSED", f"nothing was published: {text}", problems=problems)


def _schemas(bundle: Bundle, *, validate_only: bool = False) -> feedback_pb.PublishEventSchemasRequest:
    schemas = [event.message for event in bundle.events]
    return feedback_pb.PublishEventSchemasRequest(schemas=schemas, validate_only=validate_only)


def _features(bundle: Bundle, *, validate_only: bool = False) -> features_pb.PublishFeatureSetRequest:
    features = [feature.message for feature in bundle.features]
    return features_pb.PublishFeatureSetRequest(features=features, validate_only=validate_only)


def _site(
    bundle: Bundle, feature_set: feature_set_pb.FeatureSet, policy_version: str, *, validate_only: bool = False
) -> decision_pb.ApplySiteRequest:
    site = bundle.site(feature_set_version=feature_set.version, consent_policy_version=policy_version)
    return decision_pb.ApplySiteRequest(site=site, feature_set=feature_set, validate_only=validate_only)


def _batches(items: Sequence[site_pb.Item]) -> Iterator[list[site_pb.Item]]:
    """The items in calls that keep the limits of UpsertItems."""
    batch: list[site_pb.Item] = []
    batch_bytes = 0
    for item in items:
        item_bytes = item.ByteSize() + 8
        if batch and (len(batch) == ITEMS_A_CALL or batch_bytes + item_bytes > BYTES_A_CALL):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(item)
        batch_bytes += item_bytes
    if batch:
        yield batch
