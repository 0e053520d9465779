"""`comity models`: what a registered model is listed as."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from comity.decision.v1.decision_service_pb2 import RegisteredModel
from typer.testing import CliRunner

from cli.commands_learning import listed
from cli.commands_models import find, previous
from cli.main import app
from services.chassis.errors import ServiceError
from services.chassis.signing import is_signed
from services.decision.domain.release import signed_text

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


def test_a_model_that_was_stopped_is_not_rolled_back_to() -> None:
    """It decided last before the active one, and was wrong."""
    stopped = model("eeee", activated_s=11)
    stopped.stopped_why = "did not come back from scoring"
    assert previous([*MODELS, stopped], "ranker") == MODELS[1]
    assert listed(stopped)["stopped_why"] == stopped.stopped_why


def test_a_file_is_signed_by_the_key_whose_public_half_is_printed(tmp_path: Path) -> None:
    """Of this name and these bytes, without asking anybody; without the key it says where it is looked for."""
    file, key = tmp_path / "ranker.onnx", tmp_path / "key"
    file.write_bytes(b"a model")
    key.write_text("k" * 64)

    def models(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["models", *arguments, "--json"])
        return result.exit_code, result.stdout or result.stderr

    code, told = models("sign", str(file), "--name=ranker", f"--key={key}")
    assert code == 0
    signature = bytes.fromhex((tmp_path / "ranker.onnx.sig").read_text())
    assert signature.hex() == json.loads(told)["signature"]
    public_key = bytes.fromhex(json.loads(models("key", f"--key={key}")[1])["public_key"])
    sha256 = hashlib.sha256(b"a model").hexdigest()
    assert is_signed(signed_text(f"ranker@{sha256}"), signature, public_key)
    assert not is_signed(signed_text(f"other@{sha256}"), signature, public_key)
    code, told = models("sign", str(file), "--name=ranker", f"--key={tmp_path / 'none'}")
    assert (code, json.loads(told)["error"]["reason"]) == (1, "NO_MODEL_KEY")
    assert "COMITY_MODEL_KEY_FILE" in told


def test_public_half_of_a_key_that_is_elsewhere_is_not_at_hand(tmp_path: Path) -> None:
    """Where the services are, the key of a stack here is not theirs; it is told as when something is to be signed."""
    shell = {"COMITY_DECISION_ADDRESS": "elsewhere:7070", "COMITY_MODEL_KEY_FILE": ""}
    told = CliRunner().invoke(app, ["models", "key", f"--data-dir={tmp_path}"], env=shell).stderr
    assert "it is not that of a stack here" in told
    assert "COMITY_MODEL_KEY_FILE" in told
