"""Protobuf ↔ domain, the only translator of features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any

from comity.decision.v1 import decision_events_pb2, site_pb2
from comity.features.v1 import feature_set_pb2, features_events_pb2
from comity.features.v1 import features_service_pb2 as pb
from comity.feedback.v1 import feedback_events_pb2, feedback_service_pb2
from google.protobuf.message import DecodeError

from services.chassis.envelope import from_position, to_position
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import RecordedEvent
from services.features.domain import declared
from services.features.domain.aggregates import Float32s
from services.features.domain.catalog import CatalogItem
from services.features.domain.columns import Columns
from services.features.domain.declared import Feature, Transform
from services.features.domain.feature_set import (
    ContextColumn,
    DotColumn,
    FeatureSet,
    ItemColumn,
    ModelColumn,
    SubjectColumn,
    compile_features,
)
from services.features.domain.members import Behavior
from services.features.domain.reading import Answers
from services.features.domain.requests import FeatureQuery

BEHAVIOR_RECORDED = feedback_events_pb2.BehaviorRecorded.DESCRIPTOR.full_name
CATALOG_CHANGED = decision_events_pb2.CatalogChanged.DESCRIPTOR.full_name
FEATURE_SET_PUBLISHED = features_events_pb2.FeatureSetPublished.DESCRIPTOR.full_name

# Well below the 256 KiB that a message may have.
CHUNK_BYTES = 200_000


def _transform(kind: Any) -> Transform:
    return Transform.LOG1P if kind.transform == feature_set_pb2.TRANSFORM_LOG1P else Transform.NONE


_KINDS: Mapping[str, Callable[[Any], declared.Kind]] = {
    "item_attribute": lambda k: declared.ItemAttribute(k.attribute, _transform(k)),
    "item_category": lambda k: declared.ItemCategory(k.attribute, tuple(k.values)),
    "item_count": lambda k: declared.ItemCount(k.event_type, k.half_life_s, _transform(k)),
    "item_rate": lambda k: declared.ItemRate(k.numerator, k.denominator, k.prior_strength, k.half_life_s),
    "category_rate": lambda k: declared.CategoryRate(
        k.attribute, k.numerator, k.denominator, k.prior_strength, k.half_life_s
    ),
    "subject_count": lambda k: declared.SubjectCount(k.event_type, k.half_life_s, _transform(k)),
    "subject_rate": lambda k: declared.SubjectRate(k.numerator, k.denominator, k.prior_strength, k.prior_rate),
    "subject_recency": lambda k: declared.SubjectRecency(k.event_type, k.half_life_s),
    "category_affinity": lambda k: declared.CategoryAffinity(
        k.attribute, k.numerator, k.buckets, k.denominator, k.prior_strength, k.half_life_s
    ),
    "similarity": lambda k: declared.Similarity(tuple(k.attributes), k.event_type, k.dimensions),
    "context_value": lambda k: declared.ContextValue(k.key, k.default_value),
}


def features_from_pb(features: Sequence[feature_set_pb2.Feature]) -> list[Feature | None]:
    """The declarations; None for one that names no kind, or is in words of a later release: no guess is its number."""
    return [_feature(feature) for feature in features]


def _feature(feature: feature_set_pb2.Feature) -> Feature | None:
    name = feature.WhichOneof("kind")
    if name is None or getattr(getattr(feature, name), "transform", 0) not in feature_set_pb2.Transform.values():
        return None
    return Feature(
        name=feature.name,
        kind=_KINDS[name](getattr(feature, name)),
        description=feature.description,
        purposes=tuple(feature.purposes),
        owner=feature.owner,
        reason=feature.reason,
        retention_days=feature.retention_days,
        freshness_s=feature.freshness_s,
    )


def feature_set_to_pb(
    feature_set: FeatureSet, features: Sequence[feature_set_pb2.Feature]
) -> feature_set_pb2.FeatureSet:
    """The compiled set, with its features as they were declared."""
    return feature_set_pb2.FeatureSet(
        version=feature_set.version,
        features=features,
        subject_width=feature_set.subject_width,
        item_width=feature_set.item_width,
        columns=[_column(column) for column in feature_set.columns],
    )


def feature_set_from_bytes(data: bytes, version: str) -> FeatureSet:
    """A stored set, compiled again from what it declares; its name is the one it is stored under.

    Raises:
        DecodeError, ServiceError: it is not what was stored under that name.
    """
    stored = feature_set_pb2.FeatureSet.FromString(data)
    features = [feature for feature in features_from_pb(stored.features) if feature is not None]
    compiled = compile_features(features, version)
    # Bytes that were cut declare less than they say they became.
    widths = (stored.subject_width, stored.item_width)
    if stored.version != version or widths != (compiled.subject_width, compiled.item_width):
        raise ServiceError(Kind.INTERNAL, "SET_OF_OTHER_CONTENT", "the row is not the set that it is named after")
    return compiled


def published_set(data: bytes) -> bytes:
    """The set that a FeatureSetPublished tells of, as it was published; empty where it tells of none."""
    try:
        return features_events_pb2.FeatureSetPublished.FromString(data).feature_set.SerializeToString()
    except DecodeError:
        return b""


def without_words(feature_set: feature_set_pb2.FeatureSet) -> bytes:
    """The set without what changes no number: releases before hash all that is stored, and must find its version."""
    bare = feature_set_pb2.FeatureSet()
    bare.CopyFrom(feature_set)
    for feature in bare.features:
        for words in ("description", "owner", "reason", "retention_days"):
            feature.ClearField(words)
    return bare.SerializeToString(deterministic=True)


def encode_published(feature_set: feature_set_pb2.FeatureSet) -> bytes:
    """The fact that a set was published."""
    return features_events_pb2.FeatureSetPublished(feature_set=feature_set).SerializeToString()


def _column(column: ModelColumn) -> feature_set_pb2.ModelColumn:
    told = feature_set_pb2.ModelColumn(name=column.name, feature=column.feature, purposes=column.purposes)
    match column.source:
        case SubjectColumn(offset):
            told.subject.offset = offset
        case ItemColumn(offset):
            told.item.offset = offset
        case DotColumn(subject_offset, item_offset, width):
            told.dot.subject_offset, told.dot.item_offset, told.dot.width = subject_offset, item_offset, width
        case ContextColumn(key, default_value):
            told.context.key, told.context.default_value = key, default_value
    # A oneof's empty message is lost unless it is set: offset 0 is a value.
    if column.source in (SubjectColumn(0), ItemColumn(0)):
        getattr(told, "subject" if isinstance(column.source, SubjectColumn) else "item").SetInParent()
    return told


def behavior_from(event: RecordedEvent, payload: bytes) -> Behavior:
    """An event of feedback's log as the fold sees it."""
    told = feedback_events_pb2.BehaviorRecorded.FromString(payload)
    return Behavior(
        member_id=event.subject_id,
        type=told.type,
        item_ids=tuple(told.item_ids),
        occurred_s=event.occurred_at.timestamp(),
        position=event.position,
        stream_id=event.stream_id,
    )


def replayed_from_pb(event: feedback_service_pb2.ReplayedEvent) -> tuple[str, Behavior]:
    """An event that feedback gave out again, with its id."""
    behavior = Behavior(
        member_id=event.subject_id,
        type=event.behavior.type,
        item_ids=tuple(event.behavior.item_ids),
        occurred_s=event.occurred_at.ToDatetime(tzinfo=UTC).timestamp(),
        position=from_position(event.position),
    )
    return event.event_id, behavior


def items_from(payload: bytes) -> dict[str, bytes]:
    """Items that entered or changed the catalog, as they are kept."""
    changed = decision_events_pb2.CatalogChanged.FromString(payload)
    return {item.id: item.SerializeToString(deterministic=True) for item in changed.items}


def item_from_bytes(data: bytes) -> CatalogItem:
    """A kept item."""
    item = site_pb2.Item.FromString(data)
    categories = {name: tuple(values.values) for name, values in item.categories.items()}
    return CatalogItem(item.id, dict(item.numbers), categories)


def queries_from_pb(queries: Sequence[pb.FeatureQuery]) -> list[FeatureQuery]:
    """What is asked."""
    return [
        FeatureQuery(query.subject_id, tuple(query.member_ids), query.as_of.seconds + query.as_of.nanos / 1e9)
        for query in queries
    ]


def answers_to_pb(queries: Sequence[FeatureQuery], answers: Answers) -> pb.GetFeaturesResponse:
    """One answer a query, in that order."""
    vectors = answers.vectors.astype("<f4", copy=False)
    return pb.GetFeaturesResponse(
        subjects=[
            pb.SubjectFeatures(
                subject_id=query.subject_id,
                vector=vectors[row].tobytes(),
                states=answers.states[row].tobytes(),
                position=to_position(answers.positions[row]),
            )
            for row, query in enumerate(queries)
        ]
    )


def columns_to_pb(columns: Columns) -> Iterator[pb.GetItemColumnsResponse]:
    """The snapshot in chunks of whole rows; at least one, so that an empty catalog is told as such."""
    for start, end, chunk in _chunks(columns, columns.rows):
        chunk.item_ids.extend(columns.item_ids[start:end])
        yield chunk


def changed_to_pb(columns: Columns, offsets: Sequence[int]) -> Iterator[pb.GetItemColumnsResponse]:
    """Only these columns of the snapshot, for one who holds the others."""
    if not offsets:  # a set without moving columns: nothing changed but the name
        yield from columns_to_pb(columns)
        return
    for _, _, chunk in _chunks(columns, columns.rows[:, list(offsets)]):
        chunk.offsets.extend(offsets)
        yield chunk


def _chunks(columns: Columns, rows: Float32s) -> Iterator[tuple[int, int, pb.GetItemColumnsResponse]]:
    """Messages of as many rows as fit, with the bounds of those rows."""
    count = max(1, CHUNK_BYTES // max(1, rows.shape[1] * 4))
    starts = range(0, max(1, len(rows)), count)
    for start in starts:
        yield (
            start,
            start + count,
            pb.GetItemColumnsResponse(
                columns_version=columns.version,
                position=to_position(columns.standing.behavior),
                catalog_position=to_position(columns.standing.catalog),
                rows=rows[start : start + count].astype("<f4", copy=False).tobytes(),
                last=start == starts[-1],
            ),
        )
