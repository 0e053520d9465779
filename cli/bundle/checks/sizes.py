"""What is more than one call takes: the limits that the services keep, before any of them is asked."""

from collections.abc import Iterator

from comity.common.v1 import options_pb2 as options_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from cli.bundle.bundle import Bundle
from cli.bundle.problem import Problem
from services.chassis.limits import problems_of
from services.chassis.rpc_guard import REQUEST_BYTES_MAX

# Of entries the loader tells; of a list only that it is too long.
_TOO_LONG = " entries; at most "


def too_much(bundle: Bundle) -> Iterator[Problem]:
    """Lists that are too long, and parts that are too large together."""
    features = [feature.message for feature in bundle.features]
    events = [event.message for event in bundle.events]
    calls: tuple[tuple[str, str, Message], ...] = (
        ("purposes.yaml", "consent.v1.ConsentService.PublishPurposes", bundle.consent()),
        ("site.yaml", "identity.v1.IdentityService.PublishPlaceholders", bundle.identity()),
        (
            "events",
            "feedback.v1.FeedbackService.PublishEventSchemas",
            feedback_pb.PublishEventSchemasRequest(schemas=events),
        ),
        (
            "features.yaml",
            "features.v1.FeatureService.PublishFeatureSet",
            features_pb.PublishFeatureSetRequest(features=features),
        ),
        ("placements.yaml", "decision.v1.CatalogService.ApplySite", decision_pb.ApplySiteRequest(site=bundle.site())),
    )
    for file, method, request in calls:
        for found in problems_of(request):
            if "[" not in found.field and _TOO_LONG in found.problem:
                name = found.field.rpartition(".")[2]
                yield Problem(file, 0, 0, "", f"{name}: {found.problem}", "declare fewer")
        bytes_max, size = _bytes_max(f"comity.{method}"), request.ByteSize()
        if size > bytes_max:
            problem = f"has {size:,} bytes as it is sent; at most {bytes_max:,} are allowed"
            yield Problem(file, 0, 0, "", problem, "declare less, or in fewer words")


def _bytes_max(method: str) -> int:
    descriptor = descriptor_pool.Default().FindMethodByName(method)
    return descriptor.GetOptions().Extensions[options_pb.rules].request_bytes_max or REQUEST_BYTES_MAX
