"""The commands against a running stack, as a person at a shell uses them."""

import asyncio
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from comity.features.v1 import features_service_pb2 as features_pb
from typer.testing import CliRunner

from cli.connections import Services
from cli.main import app
from cli.stack import SERVICES, Stack
from tests.e2e.conftest import DEAD_PROXY
from tests.e2e.people import CALL_S, DEFAULTS, SHOP
from tests.unit.decision.onnx_models import linear


@pytest.fixture
def comity(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`comity("decide", "home_hero", …)`: exit code and JSON of the command with --json."""
    # With addresses given, whose key signs models is not known by the folder.
    monkeypatch.setenv("COMITY_MODEL_KEY_FILE", str(stack.data_dir.secrets / "model_key"))

    def run(*arguments: str) -> tuple[int, Any]:
        given = [f"--address={name}={address}" for name, address in stack.addresses.items()]
        result = CliRunner().invoke(app, [*arguments, *given, "--json"])
        text = result.stdout if result.exit_code == 0 else result.stdout or result.stderr
        return result.exit_code, json.loads(text)

    return run


def test_the_models_are_listed(comity: Any) -> None:
    """Whatever was registered, each with whether it has people to forget."""
    code, told = comity("models")
    assert code == 0
    assert all(model["retrain_before"] is None or model["erased_subjects_count"] for model in told["models"])


def test_status_tells_what_the_stack_takes(stack: Stack, comity: Any) -> None:
    """Memory of every process, disk of every store, and of one decision in the log, which is counted as it is."""
    who = f"--identity=user_id:{uuid.uuid4().hex}"
    assert comity("decide", "home_hero", who, "--deadline-ms=5000")[0] == 0
    result = CliRunner().invoke(app, ["status", "--json", f"--data-dir={stack.data_dir.path}"])
    figures = json.loads(result.stdout)["figures"]
    assert figures["memory_bytes"].keys() == {"postgres", "nats", "valkey", *SERVICES}
    assert min(figures["memory_bytes"].values()) > 1_000_000
    assert figures["disk_bytes"]["postgres"] > 10_000_000
    assert figures["decisions_count"] >= 1
    assert figures["decision_bytes"] == figures["decision_log_bytes"] / figures["decisions_count"]


def test_a_decision_from_the_shell_and_why(comity: Any) -> None:
    """Grant, decide, ask why, replay, track, look the consent up, revoke, decide again."""
    who = f"--identity=user_id:{uuid.uuid4().hex}"
    purposes = ("--purpose=profile_personalization", "--purpose=measurement")
    assert comity("consent", "grant", who, *purposes, "--notice-version=2026-10", "--language=en")[0] == 0
    code, decided = comity("decide", "home_hero", who, "--context=hour=20", "--deadline-ms=5000", "--dry-run")
    assert (code, decided["dry_run"], decided["decisions"][0]["decision_id"]) == (0, True, "")
    code, decided = comity("decide", "home_hero", who, "--context=hour=20", "--deadline-ms=5000")
    assert (code, decided["dry_run"]) == (0, False)
    (hero,) = decided["decisions"]
    assert hero["reason"] in ("REASON_RANKED", "REASON_HOLDOUT")
    code, why = comity("why", hero["decision_id"])
    assert (code, why["decision"]["decision_id"]) == (0, hero["decision_id"])
    assert comity("replay", hero["decision_id"]) == (
        0,
        {"decisions": 1, "identical": 1, "different": [], "missing": [], "newer": []},
    )
    decision = (f"--decision={hero['decision_id']}", f"--exposure-token={hero['exposure_token']}")
    code, tracked = comity("track", "click", who, "--item=kite", *decision)
    assert (code, tracked["results"][0]["status"]) == (0, "TRACK_STATUS_ACCEPTED")
    assert comity("consent", "revoke", who)[0] == 0
    code, history = comity("consent", "history", who)
    assert {record["state"] for record in history["records"]} == {"CONSENT_STATE_GRANTED", "CONSENT_STATE_REVOKED"}
    code, decided = comity("decide", "home_hero", who, "--deadline-ms=5000")
    assert decided["decisions"][0]["fallback_reason"] == "FALLBACK_REASON_NO_CONSENT"


def test_a_proxy_for_the_web_stands_in_no_ones_way(comity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With http_proxy set, here and for every service, what needs all five of them is answered with the profile."""
    for name, value in DEAD_PROXY.items():
        monkeypatch.setenv(name, value)
    who = f"--identity=user_id:{uuid.uuid4().hex}"
    assert (
        comity(
            "consent", "grant", who, "--purpose=profile_personalization", "--notice-version=2026-10", "--language=en"
        )[0]
        == 0
    )
    code, decided = comity("decide", "home_hero", who, "--context=hour=20", "--deadline-ms=5000")
    assert (code, decided["decisions"][0]["reason"] in ("REASON_RANKED", "REASON_HOLDOUT")) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "no_such_model"), "no_such_model is in no policy; policies name: shop_clicks"),
        (("train", "shop_clicks", "--purpose=curiosity"), "curiosity is not declared; declared are: "),
        (
            ("train", "shop_clicks", "--placement=cellar"),
            "cellar is no placement of the site; there are: checkout_addon",
        ),
        (("train", "shop_clicks", "--since=2026-01-02", "--until=2026-01-02"), "is not after --since"),
    ],
)
def test_what_a_training_names_is_checked_before_the_work(comity: Any, arguments: tuple[str, ...], said: str) -> None:
    """A mistyped name costs no hour; what there is instead is told."""
    code, error = comity(*arguments)
    assert (code, said in error["error"]["message"]) == (1, True), error


def test_models_of_elsewhere_are_checked_registered_activated_and_taken_back(
    comity: Any, stack: Stack, tmp_path: Path
) -> None:
    """From two ONNX files to the one that decides, and back to the one before."""
    width = asyncio.run(columns_count(stack))
    files = []
    for number, weight in enumerate((1.0, 2.0)):
        files.append(tmp_path / f"{number}.onnx")
        files[-1].write_bytes(linear(width, weights=[weight] * width).SerializeToString())
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(linear(width + 1).SerializeToString())
    code, error = comity("models", "check", str(bad), "--name=elsewhere")
    assert (code, error["error"]["reason"]) == (1, "MODEL_REFUSED")
    code, told = comity("models", "check", str(files[0]), "--name=elsewhere", "--last=5")
    assert (code, [one["seen"] for one in told["models"]]) == (0, [None])
    assert told["decisions"] <= 5
    first, second = (comity("models", "register", str(file), "--name=elsewhere")[1]["model_version"] for file in files)
    assert comity("models", "rollback", "elsewhere")[1]["error"]["reason"] == "NOTHING_TO_ROLL_BACK_TO"
    for version in (first, second):
        assert comity("models", "activate", version[:24]) == (0, {"model_version": version})
    code, told = comity("models", "compare", first, "--last=5")
    assert (code, [one["model_version"] for one in told["models"]]) == (0, [first, second])
    assert comity("models", "rollback", "elsewhere") == (0, {"model_version": first})
    code, told = comity("models", "show", "elsewhere")
    assert (code, told["sha256"], told["active"]) == (0, first.partition("@")[2], True)
    assert told["activated_at"] is not None


async def columns_count(stack: Stack) -> int:
    """How many columns a model of the site reads."""
    async with Services(stack.addresses) as services:
        described = await services.features.DescribeFeatureSet(features_pb.DescribeFeatureSetRequest(), timeout=CALL_S)
    return len(described.feature_set.columns)


@pytest.mark.usefixtures("site_restored")
def test_an_item_that_left_the_bundle_is_named_and_retired_on_request(comity: Any, tmp_path: Path) -> None:
    """Until then it goes on being shown, and apply says so."""
    shop = shutil.copytree(SHOP, tmp_path / "shop")
    items = yaml.safe_load((shop / "items.yaml").read_text())
    (shop / "items.yaml").write_text(yaml.safe_dump([item for item in items if item["id"] != "trail-runner"]))
    code, applied = comity("apply", str(shop))
    assert (code, applied["missing"], applied["retired"]) == (0, ["trail-runner"], [])
    assert {one["placement_id"] for one in applied["offers"]} == set(DEFAULTS)
    assert all(one["considered"] == one["eligible"] > 0 for one in applied["offers"])
    code, applied = comity("apply", str(shop), "--retire-missing")
    assert (code, applied["missing"], applied["retired"]) == (0, [], ["trail-runner"])
    assert applied["changed"]["items"]
    assert comity("apply", str(shop))[1]["missing"] == []


def test_people_are_linked_from_the_shell_where_they_allow_it(comity: Any) -> None:
    """Refused before consent, made with it, looked up, and taken back."""
    visitor, user = f"--identity=anonymous_id:{uuid.uuid4().hex}", f"--identity=user_id:{uuid.uuid4().hex}"
    code, error = comity("identity", "link", visitor, user)
    assert (code, error["error"]["reason"]) == (1, "IDENTITY_LINKING_NOT_ALLOWED")
    granted = ("--purpose=identity_linking", "--notice-version=2026-10", "--language=en")
    assert comity("consent", "grant", visitor, *granted)[0] == 0
    code, linked = comity("identity", "link", visitor, user)
    assert (code, linked["merged"], len(linked["subject"]["members"])) == (0, True, 2)
    code, resolved = comity("identity", "resolve", user)
    assert resolved["subjects"][0]["subject_id"] == linked["subject"]["subject_id"]
    code, described = comity("identity", "describe", visitor, "--reason=a test")
    assert [one["link_id"] for one in described["links"]] == [linked["link_id"]]
    assert comity("identity", "unlink", linked["link_id"])[0] == 0
    code, apart = comity("identity", "resolve", user)
    assert len(apart["subjects"][0]["members"]) == 1
    code, error = comity("identity", "resolve", "--identity=device_fingerprint:f")
    assert (code, error["error"]["reason"]) == (1, "NAMESPACE_NOT_ALLOWED")


def test_what_a_person_objects_to_from_the_shell(comity: Any) -> None:
    """By a signal for one call, or in the ledger for all; consent without the notice is refused with the remedy."""
    who = f"--identity=user_id:{uuid.uuid4().hex}"
    code, error = comity("consent", "grant", who, "--purpose=profile_personalization")
    assert (code, error["error"]["reason"]) == (1, "NOTICE_REQUIRED")
    decide = ("decide", "home_hero", who, "--deadline-ms=5000", "--jurisdiction=us-ca")
    _, decided = comity(*decide)
    assert decided["decisions"][0]["fallback_reason"] == "FALLBACK_REASON_UNSPECIFIED"
    # An opt-out of sale leaves the layer that needs no profile; the other two object to all of it here.
    _, decided = comity(*decide, "--usp=1YYN")
    assert decided["decisions"][0]["layer"] in ("SUBJECT_LEVEL_ANONYMOUS", "SUBJECT_LEVEL_UNSPECIFIED")
    for objection in ("--gpc", "--do-not-personalize"):
        _, decided = comity(*decide, objection)
        assert decided["decisions"][0]["fallback_reason"] == "FALLBACK_REASON_DO_NOT_PERSONALIZE"
    _, tracked = comity("track", "cta_clicked", who, "--property=cta=newsletter", "--jurisdiction=us-ca", "--gpc")
    assert tracked["results"][0]["status"] == "TRACK_STATUS_ANONYMIZED"
    assert comity("consent", "object", who, "--do-not-personalize", "--mechanism=account_settings")[0] == 0
    _, decided = comity(*decide)
    assert decided["decisions"][0]["fallback_reason"] == "FALLBACK_REASON_DO_NOT_PERSONALIZE"
    _, history = comity("consent", "history", who)
    assert {(one["purpose"], one["state"], one["mechanism"]) for one in history["records"]} == {
        ("profile_personalization", "CONSENT_STATE_OBJECTED", "account_settings"),
        ("session_personalization", "CONSENT_STATE_OBJECTED", "account_settings"),
    }


def test_a_refusal_names_the_field_and_ends_with_one(comity: Any) -> None:
    """What a service refuses is told with field and remedy, as an object for programs."""
    code, error = comity("decide", "no_such_place", "--identity=user_id:1", "--deadline-ms=5000")
    assert code == 1
    assert "placement_id" in json.dumps(error)
    code, error = comity("track", "clik", "--identity=user_id:1")
    assert code == 1
    assert error["error"]["problems"][0]["field"] == "type"


def test_every_decision_of_the_log_replays(comity: Any) -> None:
    """`comity replay --all` finds all decisions and all come out the same."""
    code, found = comity("replay", "--all")
    assert code == 0, found
    assert found["decisions"] == found["identical"]


@pytest.mark.usefixtures("site_restored")
def test_applying_the_same_bundle_again_changes_nothing(comity: Any) -> None:
    """Versions are content hashes; the second apply says that nothing changed."""
    first = comity("apply", str(SHOP))
    second = comity("apply", str(SHOP))
    assert first[0] == second[0] == 0
    assert first[1]["versions"] == second[1]["versions"]
    assert not any(second[1]["changed"].values())
