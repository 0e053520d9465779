"""`comity train`: what it names is checked before the work."""

from typing import Any

import pytest
from comity.consent.v1.consent_service_pb2 import DescribeConsentResponse
from comity.decision.v1.decision_service_pb2 import DescribeSiteResponse

from cli.commands_learning import check_request
from learning.pipeline import TrainRequest
from services.chassis.errors import Kind, ServiceError


class Site:
    """A site whose policy ranks by `ranker`, and consent that declares one purpose or does not tell."""

    def __init__(self, *purposes: str, addresses: tuple[str, ...] = ("decision", "consent")) -> None:
        self.addresses = dict.fromkeys(addresses, "127.0.0.1:1")
        self.catalog = self.consent = self
        self._purposes = purposes

    async def DescribeSite(self, request: Any, timeout: float) -> DescribeSiteResponse:  # noqa: N802
        response = DescribeSiteResponse()
        response.site.policies.add().ranker.model = "ranker"
        response.site.policies.add().ranker.column = "price"
        return response

    async def DescribeConsent(self, request: Any, timeout: float) -> DescribeConsentResponse:  # noqa: N802
        assert request.with_purposes
        return DescribeConsentResponse(purposes=self._purposes)


@pytest.mark.parametrize("site", [Site("model_training"), Site(), Site("other", addresses=("decision",))])
async def test_what_is_named_may_be_trained(site: Any) -> None:
    """Also where consent does not tell its purposes, being of the release before, or where it is was not said."""
    await check_request(site, TrainRequest(name="ranker", purpose="model_training"))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (TrainRequest(name="price", purpose="model_training"), "MODEL"),
        (TrainRequest(name="ranker", purpose="modeltraining"), "--purpose"),
    ],
)
async def test_what_is_not_there_is_refused(request_: TrainRequest, field: str) -> None:
    """A column that ranks is no model."""
    site: Any = Site("model_training")
    with pytest.raises(ServiceError) as refused:
        await check_request(site, request_)
    assert (refused.value.kind, refused.value.problems[0].field) == (Kind.INVALID, field)
