"""Bad input, over gRPC: a typed error that names the field and the remedy, and nothing half-applied."""

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from cli.connections import Services
from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error
from tests.e2e.people import CALL_S, Person

Spoil = Callable[[decision_pb.DecideRequest], None]


async def refusal(call: Awaitable[Any]) -> ServiceError:
    """The error that the call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


async def test_a_decide_without_a_deadline_is_refused(willing: Person) -> None:
    """The deadline is the contract; without one there is none."""
    error = await refusal(willing.services.decision.Decide(willing.request()))
    assert error.kind is Kind.INVALID
    assert "deadline" in error.message


def many_candidates(request: decision_pb.DecideRequest) -> None:
    request.placements[0].candidate_ids.extend(f"item-{i}" for i in range(10_000))


def not_a_number(request: decision_pb.DecideRequest) -> None:
    request.context["hour"].number_value = float("nan")


def many_placements(request: decision_pb.DecideRequest) -> None:
    request.placements.extend(request.placements[:1] * 17)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda request: request.ClearField("identities"), "identities"),
        (lambda request: request.ClearField("placements"), "placements"),
        (lambda request: request.ClearField("request_id"), "request_id"),
        (lambda request: setattr(request, "request_id", "x" * 65), "request_id"),
        (lambda request: setattr(request.placements[0], "placement_id", "no_such_place"), "placements[0].placement_id"),
        (lambda request: setattr(request.placements[0], "slate_size", 101), "placements[0].slate_size"),
        (lambda request: setattr(request.identities[0], "namespace", "shoe_size"), "identities"),
        (many_candidates, "placements[0].candidate_ids"),
        (many_placements, "placements"),
        (not_a_number, "context"),
    ],
)
async def test_a_bad_field_is_named_with_its_remedy(willing: Person, spoil: Spoil, field: str) -> None:
    """Each mistake is INVALID_ARGUMENT with the field that is wrong; the message is for a person to act on."""
    request = willing.request()
    spoil(request)
    error = await refusal(willing.services.decision.Decide(request, timeout=CALL_S))
    assert error.kind in (Kind.INVALID, Kind.NOT_FOUND)
    assert any(problem.field.startswith(field) and problem.problem for problem in error.problems), error.problems
    assert "x" * 65 not in error.message


async def test_a_request_of_two_megabytes_is_refused_as_too_large(willing: Person) -> None:
    """Size is bounded before anything is read."""
    request = willing.request()
    request.context["note"].string_value = "x" * 2_000_000
    error = await refusal(willing.services.decision.Decide(request, timeout=CALL_S))
    assert error.kind in (Kind.EXHAUSTED, Kind.INVALID)


def event_of(person: Person, type_: str = "click") -> feedback_pb.TrackedEvent:
    return feedback_pb.TrackedEvent(event_id=uuid.uuid4().hex, type=type_, subject=person.subject, item_ids=["kite"])


async def track(services: Services, *events: feedback_pb.TrackedEvent) -> list[feedback_pb.TrackResult]:
    response = await services.feedback.Track(feedback_pb.TrackRequest(events=events), timeout=CALL_S)
    return list(response.results)


async def test_a_bad_event_is_refused_on_its_own_and_costs_no_other(willing: Person) -> None:
    """An unknown type and an event from the future are refused with field and remedy; the one beside them is taken."""
    future = event_of(willing)
    future.occurred_at.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    good = event_of(willing)
    unknown, late, taken = await track(willing.services, event_of(willing, "clik"), future, good)
    assert (unknown.status, unknown.field) == (feedback_pb.TRACK_STATUS_REFUSED, "type")
    assert (late.status, late.field) == (feedback_pb.TRACK_STATUS_REFUSED, "occurred_at")
    assert unknown.problem
    assert late.problem
    assert taken.status == feedback_pb.TRACK_STATUS_ACCEPTED


async def test_an_event_sent_twice_counts_once(willing: Person) -> None:
    """The caller's event id makes the second a duplicate."""
    event = event_of(willing)
    (first,) = await track(willing.services, event)
    (second,) = await track(willing.services, event)
    assert first.status == feedback_pb.TRACK_STATUS_ACCEPTED
    assert second.status == feedback_pb.TRACK_STATUS_DUPLICATE


async def test_an_event_of_somebody_who_did_not_agree_is_dropped(person: Person) -> None:
    """Without consent to the event's purposes nothing is stored."""
    (dropped,) = await track(person.services, event_of(person))
    assert dropped.status == feedback_pb.TRACK_STATUS_DROPPED_NO_CONSENT


async def test_an_invalid_site_is_refused_and_the_old_one_goes_on(services: Services) -> None:
    """A site that contradicts itself is refused whole, with its fields, and what is applied does not change."""
    before = await services.catalog.DescribeSite(decision_pb.DescribeSiteRequest(), timeout=CALL_S)
    feature_set = await described_features(services)
    site = decision_pb.ApplySiteRequest(site=before.site, feature_set=feature_set)
    site.site.placements[0].policy_id = "no_such_policy"
    site.site.policies[0].eligibility = "item.attributes.stock >"
    error = await refusal(services.catalog.ApplySite(site, timeout=CALL_S))
    assert error.kind is Kind.INVALID
    fields = [problem.field for problem in error.problems]
    assert any("policy_id" in field for field in fields)
    assert any("eligibility" in field for field in fields)
    after = await services.catalog.DescribeSite(decision_pb.DescribeSiteRequest(), timeout=CALL_S)
    assert after.site_version == before.site_version


async def described_features(services: Services) -> Any:
    described = await services.features.DescribeFeatureSet(features_pb.DescribeFeatureSetRequest(), timeout=CALL_S)
    return described.feature_set


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x07" * 500])
async def test_a_model_that_does_not_fit_is_refused_whole(services: Services, content: bytes) -> None:
    """Neither bytes that are no ONNX nor columns of another shape get in, and nothing of them is kept."""
    feature_set = await described_features(services)
    for columns in (["one", "two"], [column.name for column in feature_set.columns]):
        header = decision_pb.ModelHeader(
            name="shop_clicks",
            sha256=hashlib.sha256(content).hexdigest(),
            feature_set_version=feature_set.version,
            columns=columns,
        )
        parts = [decision_pb.RegisterModelRequest(header=header), decision_pb.RegisterModelRequest(chunk=content)]
        error = await refusal(services.release.RegisterModel(iter(parts), timeout=CALL_S))
        assert error.kind is Kind.INVALID
        assert error.message
    models = await services.release.ListModels(decision_pb.ListModelsRequest(), timeout=CALL_S)
    assert hashlib.sha256(content).hexdigest() not in {model.sha256 for model in models.models}


@pytest.mark.parametrize("method", ["GetDecision", "Explain", "Replay"])
async def test_a_decision_that_was_never_made_is_not_found(services: Services, method: str) -> None:
    """Asking for what is not in the log says so."""
    request = getattr(decision_pb, f"{method}Request")(decision_id="0" * 32)
    error = await refusal(getattr(services.decision, method)(request, timeout=CALL_S))
    assert error.kind is Kind.NOT_FOUND
