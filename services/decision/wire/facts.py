"""What the catalog and the releases tell the world, as messages; and what they keep of what was declared."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2

from services.chassis.errors import invalid
from services.chassis.ids import content_hash
from services.decision.domain.candidates import Offer
from services.decision.domain.release import DeclaredItem, DeclaredSite, SentSite
from services.decision.domain.serving import Serving
from services.decision.wire.site import compiled_from_pb, item_from_pb

SITE_APPLIED = events_pb.SiteApplied.DESCRIPTOR.full_name
CATALOG_CHANGED = events_pb.CatalogChanged.DESCRIPTOR.full_name
MODEL_REGISTERED = events_pb.ModelRegistered.DESCRIPTOR.full_name
MODEL_ACTIVATED = events_pb.ModelActivated.DESCRIPTOR.full_name

# Several events of this size fit one message of the bus with others; a call of 500 large items makes several events.
EVENT_BYTES = 150 * 2**10


def sent_site(request: pb.ApplySiteRequest) -> SentSite:
    """The site of the request.

    Raises:
        ServiceError: INVALID when it names no feature set.
    """
    if not request.feature_set.version:
        raise invalid("feature_set", "is missing; send the feature set that FeatureService published")
    return SentSite(request.feature_set.version, partial(_bound_to, request))


def _bound_to(request: pb.ApplySiteRequest, published: bytes | None) -> DeclaredSite:
    """See SentSite.bound_to."""
    feature_set = request.feature_set.SerializeToString(deterministic=True) if published is None else published
    site = site_pb2.Site()
    site.CopyFrom(request.site)
    site.feature_set_digest = content_hash(feature_set)
    compiled = compiled_from_pb(site, feature_set_pb2.FeatureSet.FromString(feature_set))
    return DeclaredSite(compiled, site.SerializeToString(deterministic=True), feature_set)


def declared_items(request: pb.UpsertItemsRequest) -> list[DeclaredItem]:
    """The items of the request, in order."""
    return [DeclaredItem(item_from_pb(item), item.SerializeToString(deterministic=True)) for item in request.items]


def items_to_pb(items: Iterable[DeclaredItem]) -> Iterator[pb.ListItemsResponse]:
    """The items as messages of a size that fits."""
    for part in _parts(declared.data for declared in items):
        yield pb.ListItemsResponse(items=[site_pb2.Item.FromString(item) for item in part])


def described_to_pb(site: bytes, serving: Serving) -> pb.DescribeSiteResponse:
    """What decides now; *site* as it was declared."""
    assert serving.compiled is not None, "a site is applied"
    return pb.DescribeSiteResponse(
        site=site_to_pb(site),
        site_version=serving.compiled.site.version,
        catalog_version=str(serving.catalog.version),
        items_count=len(serving.catalog.items),
        offers=[_offer_to_pb(placement_id, offer) for placement_id, offer in serving.offers.items()],
    )


def _offer_to_pb(placement_id: str, offer: Offer) -> pb.PlacementOffer:
    considered, cut = len(offer.item_ids), offer.cut
    return pb.PlacementOffer(
        placement_id=placement_id,
        eligible_count=considered if cut is None else cut.eligible_count,
        considered_count=considered,
        cut_by="" if cut is None else cut.by,
    )


def site_to_pb(data: bytes) -> site_pb2.Site:
    """The site that these bytes keep."""
    return site_pb2.Site.FromString(data)


def site_applied(site_version: str, site: bytes) -> bytes:
    """The fact that a site was applied."""
    return events_pb.SiteApplied(site_version=site_version, site=site_to_pb(site)).SerializeToString()


def catalog_changed(catalog_version: int, items: Sequence[bytes]) -> list[bytes]:
    """The fact that items entered or changed, in as many events as keep each of them small."""
    return [
        events_pb.CatalogChanged(
            catalog_version=str(catalog_version), items=[site_pb2.Item.FromString(item) for item in part]
        ).SerializeToString()
        for part in _parts(items)
    ]


def model_registered(name: str, sha256: str, feature_set_version: str, columns_count: int) -> bytes:
    """The fact that a model was registered."""
    return events_pb.ModelRegistered(
        name=name, sha256=sha256, feature_set_version=feature_set_version, columns_count=columns_count
    ).SerializeToString()


def model_activated(name: str, sha256: str) -> bytes:
    """The fact that a model decides from now on."""
    return events_pb.ModelActivated(name=name, sha256=sha256).SerializeToString()


def activated_of(payload: bytes) -> str:
    """SHA-256 of the model that the fact says decides from then on."""
    return events_pb.ModelActivated.FromString(payload).sha256


def _parts(items: Iterable[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for item in items:
        if part and size + len(item) > EVENT_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item)
    if part:
        yield part
