"""`comity models`: what a registered model is listed as."""

from datetime import UTC, datetime

import pytest
from comity.decision.v1.decision_service_pb2 import RegisteredModel

from cli.commands_learning import listed
from cli.commands_models import find, previous
from services.chassis.errors import ServiceError

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


def model(sha256: str, *, name: str = "ranker", active: bool = False, activated_s: int = 0) -> RegisteredModel:
    made = RegisteredModel(name=name, sha256=sha256 * 16, active=active)
    if activated_s:
        made.activated_at.FromSeconds(activated_s)
    return made


MODELS = [
    model("aaaa", activated_s=5),
    model("aabb", activated_s=9),
    model("bbbb", active=True, activated_s=12),
    model("cccc"),
    model("dddd", name="other", activated_s=99),
]


@pytest.mark.parametrize(
    ("reference", "found"), [("ranker@bb", MODELS[2]), ("ranker@aab", MODELS[1]), ("ranker", MODELS[2])]
)
def test_a_model_is_named_by_as_much_of_its_hash_as_is_unmistakable(reference: str, found: RegisteredModel) -> None:
    """A name alone is the active one."""
    assert find(MODELS, reference) == found


@pytest.mark.parametrize(
    ("reference", "reason"),
    [("ranker@aa", "AMBIGUOUS"), ("ranker@e", "UNKNOWN"), ("other", "UNKNOWN"), ("x", "UNKNOWN")],
)
def test_what_names_no_model_or_several_is_refused(reference: str, reason: str) -> None:
    """With those of the name that there are."""
    with pytest.raises(ServiceError) as refused:
        find(MODELS, reference)
    assert refused.value.reason == f"MODEL_{reason}"


def test_a_rollback_goes_to_the_model_that_decided_before() -> None:
    """One that never decided is not gone back to, nor one of another name."""
    assert previous(MODELS, "ranker") == MODELS[1]
    unfit = RegisteredModel(name="ranker", sha256="e" * 64, stopped_fitting=True)
    unfit.activated_at.FromSeconds(20)
    assert previous([*MODELS, unfit], "ranker") == MODELS[1]
    with pytest.raises(ServiceError) as refused:
        previous([MODELS[2], MODELS[3]], "ranker")
    assert refused.value.reason == "NOTHING_TO_ROLL_BACK_TO"


def test_a_model_that_stopped_fitting_is_not_active() -> None:
    """It was chosen for its name, and reads other features than the site's."""
    told = listed(RegisteredModel(name="ranker", sha256="a" * 64, stopped_fitting=True))
    assert (told["active"], told["stopped_fitting"]) == (False, True)
