"""Sites, items and feature sets as messages."""

from collections.abc import Sequence

import numpy as np
from comity.decision.v1 import site_pb2 as pb
from comity.features.v1 import feature_set_pb2, features_service_pb2

from services.chassis.envelope import from_position
from services.chassis.errors import ServiceError, invalid
from services.chassis.ids import content_hash
from services.decision.domain.catalog import ItemColumns
from services.decision.domain.layout import (
    Column,
    ContextColumn,
    DotColumn,
    FeatureSet,
    ItemColumn,
    Source,
    SubjectColumn,
)
from services.decision.domain.plan import CompiledSite, compile_site
from services.decision.domain.site import DefaultEntry, Item, Layer, Placement, Policy, Site
from services.decision.domain.vocabulary import Level


def site_version(site: pb.Site, feature_set: feature_set_pb2.FeatureSet) -> str:
    """Content hash of the site, whose digest is of the whole feature set, and of that set's version.

    Releases before compute it in the same way; their sites have no digest.
    """
    return content_hash(site.SerializeToString(deterministic=True) + feature_set.version.encode())


def compiled_from_pb(site: pb.Site, feature_set: feature_set_pb2.FeatureSet) -> CompiledSite:
    """The site ready to decide.

    Raises:
        ServiceError: INVALID (SITE_INVALID), see domain.plan.
    """
    return compile_site(site_from_pb(site, site_version(site, feature_set)), feature_set_from_pb(feature_set))


def compiled_from_bytes(site: bytes, feature_set: bytes) -> CompiledSite:
    """The site ready to decide, from the bytes it is kept in."""
    return compiled_from_pb(pb.Site.FromString(site), feature_set_pb2.FeatureSet.FromString(feature_set))


def site_from_pb(site: pb.Site, version: str) -> Site:
    """The declared site."""
    return Site(
        name=site.name,
        version=version,
        holdout_share=site.holdout_share,
        placements=tuple(_placement(placement) for placement in site.placements),
        policies=tuple(_policy(policy) for policy in site.policies),
        feature_set_version=site.feature_set_version,
        consent_policy_version=site.consent_policy_version,
        exposure_purposes=frozenset(site.exposure_purposes),
    )


def item_from_pb(item: pb.Item) -> Item:
    """The item."""
    return Item(
        id=item.id,
        categories={name: tuple(categories.values) for name, categories in item.categories.items()},
        numbers=dict(item.numbers),
        variants=tuple(item.variants),
        retired=item.retired,
    )


def item_from_bytes(item: bytes) -> Item:
    """The item, from the bytes it is kept in."""
    return item_from_pb(pb.Item.FromString(item))


def feature_set_from_pb(feature_set: feature_set_pb2.FeatureSet) -> FeatureSet:
    """The layout that features compiled."""
    return FeatureSet(
        version=feature_set.version,
        subject_width=feature_set.subject_width,
        item_width=feature_set.item_width,
        columns=tuple(
            Column(column.name, column.feature, tuple(column.purposes), _source(column))
            for column in feature_set.columns
        ),
    )


def item_columns_from_pb(
    feature_set_version: str,
    item_width: int,
    chunks: Sequence[features_service_pb2.GetItemColumnsResponse],
    held: ItemColumns | None = None,
) -> ItemColumns:
    """The snapshot that these chunks make up, on top of the one that is held where only changed columns were sent.

    Raises:
        ValueError: it does not fit the layout, or what is held.
    """
    first, last = chunks[0], chunks[-1]
    offsets = np.array(first.offsets, dtype=np.intp)
    item_ids = tuple(item_id for chunk in chunks for item_id in chunk.item_ids)
    values = np.frombuffer(b"".join(chunk.rows for chunk in chunks), dtype="<f4").astype(np.float32, copy=False)
    sent = ItemColumns(
        version=last.columns_version,
        feature_set_version=feature_set_version,
        item_ids=item_ids,
        rows=values.reshape(-1, len(offsets)) if len(offsets) else values.reshape(len(item_ids), item_width),
        position=from_position(last.position),
        catalog_position=from_position(last.catalog_position),
    )
    if not len(offsets):
        return sent
    if held is None:
        raise ValueError("changed columns were sent, and nothing is held")
    return held.with_columns(sent, offsets)


def _placement(placement: pb.Placement) -> Placement:
    return Placement(
        id=placement.id,
        slate_size=placement.slate_size,
        default_slate=tuple(DefaultEntry(entry.item_id, entry.variant_id) for entry in placement.default_slate),
        purposes=tuple(placement.purposes),
        policy_id=placement.policy_id,
        popular_without_consent=placement.popular_without_consent,
        disabled=placement.disabled,
        variants=tuple(placement.variants),
        layers=tuple(Layer(_level(layer.level), frozenset(layer.purposes)) for layer in placement.layers),
    )


def _level(number: int) -> Level:
    if number not in set(Level):
        raise _unknown("site.placements", "a layer has a level")
    return Level(number)


def _policy(policy: pb.Policy) -> Policy:
    return Policy(
        id=policy.id,
        version=content_hash(policy.SerializeToString(deterministic=True)),
        eligibility=policy.eligibility,
        audience=policy.audience,
        model=policy.ranker.model,
        column=policy.ranker.column,
        epsilon=policy.epsilon,
        popular_by=policy.popular_by,
    )


def _source(column: feature_set_pb2.ModelColumn) -> Source:
    kind = column.WhichOneof("source")
    if kind == "subject":
        return SubjectColumn(column.subject.offset)
    if kind == "item":
        return ItemColumn(column.item.offset)
    if kind == "dot":
        return DotColumn(column.dot.subject_offset, column.dot.item_offset, column.dot.width)
    if kind == "context":
        return ContextColumn(column.context.key, column.context.default_value)
    # Of a later release, as a rule. Any guess would shift what the model reads.
    raise _unknown("feature_set.columns", "a column has a source")


def _unknown(field: str, what: str) -> ServiceError:
    """The refusal of a site that a later release has declared: this replica goes on with the one it has."""
    return invalid(field, f"{what} that this release does not know; upgrade decision first", reason="SITE_INVALID")
