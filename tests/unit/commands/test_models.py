"""`comity models`: what a registered model is listed as."""

from datetime import UTC, datetime

from comity.decision.v1.decision_service_pb2 import RegisteredModel

from cli.commands_learning import listed

SINCE = datetime(2026, 11, 1, tzinfo=UTC)


def test_a_model_that_knew_the_erased_says_by_when_it_is_trained_again() -> None:
    """Thirty days after the first of them: what the receipts of erasures promise."""
    model = RegisteredModel(name="ranker", sha256="a" * 64, active=True, erased_subjects_count=2)
    model.retrain_since.FromDatetime(SINCE)
    told = listed(model)
    assert (told["erased_subjects_count"], told["retrain_before"]) == (2, "2026-12-01T00:00:00+00:00")


def test_a_model_that_has_nobody_to_forget_has_no_date() -> None:
    """Nor has one of which it was never told whom it was trained on."""
    told = listed(RegisteredModel(name="ranker", sha256="a" * 64))
    assert (told["erased_subjects_count"], told["retrain_since"], told["retrain_before"]) == (0, None, None)
