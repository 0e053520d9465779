"""The kinds of features: which tell something about a person, and what of an item each reads."""

from comity.features.v1 import feature_set_pb2 as features_pb
from google.protobuf.message import Message

# What one person did: of the others some are about items, and context_value is what the caller says in passing.
PERSONAL_KINDS = ("subject_count", "subject_rate", "subject_recency", "category_affinity", "similarity")


def kind_of(feature: features_pb.Feature) -> tuple[str, Message | None]:
    """The name and the body of the feature's kind; empty and None where it has none."""
    kind = feature.WhichOneof("kind")
    return ("", None) if kind is None else (kind, getattr(feature, kind))


def attributes_of(feature: features_pb.Feature) -> list[tuple[str, str]]:
    """Path and name of each attribute of an item that the feature reads."""
    kind, body = kind_of(feature)
    if attribute := getattr(body, "attribute", ""):
        return [(f".{kind}.attribute", attribute)]
    return [(f".{kind}.attributes[{i}]", name) for i, name in enumerate(getattr(body, "attributes", ()))]
