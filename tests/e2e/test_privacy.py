"""A person's rights as a privacy officer serves them from the shell, over all services."""

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.stack import Stack
from tests.e2e.people import SHOP

GRANTED = ("profile_personalization", "measurement")
COLLECTED = ("--notice-version=2026-10", "--language=en")
OFFICER = ("--as=officer", "--reason=the person asked")


@pytest.fixture
def comity(stack: Stack) -> Any:
    """`comity("privacy", "status", …)`: exit code and JSON of the command with --json."""

    def run(*arguments: str) -> tuple[int, Any]:
        given = [f"--address={name}={address}" for name, address in stack.addresses.items()]
        result = CliRunner().invoke(app, [*arguments, *given, "--json"])
        text = result.stdout if result.exit_code == 0 else result.stdout or result.stderr
        return result.exit_code, json.loads(text)

    return run


@pytest.fixture
def known(comity: Any) -> str:
    """A person who agreed, was decided for and clicked; as --identity names them."""
    who = f"--identity=user_id:{uuid.uuid4().hex}"
    purposes = [f"--purpose={name}" for name in GRANTED]
    assert comity("consent", "grant", who, *purposes, *COLLECTED)[0] == 0
    code, decided = comity("decide", "home_hero", who, "--context=hour=20", "--deadline-ms=5000")
    assert code == 0
    (hero,) = decided["decisions"]
    decision = (f"--decision={hero['decision_id']}", f"--exposure-token={hero['exposure_token']}")
    assert comity("track", "click", who, "--item=kite", *decision)[0] == 0
    return who


def test_everything_held_is_exported_with_its_reasons(comity: Any, known: str, tmp_path: Path) -> None:
    """Ledger, behavior, decisions, why they came out so, and that the export itself was made, by whom."""
    code, answer = comity("privacy", "export", known, f"--to={tmp_path / 'out'}", *OFFICER)
    assert code == 0, answer
    head, *records = [json.loads(line) for line in (tmp_path / "out" / "subject.jsonl").read_text().splitlines()]
    assert head["schema"] == "comity.privacy.export/1"
    assert len(records) == answer["records"]
    kinds = {record["schema"].rpartition(".")[2] for record in records}
    assert kinds >= {"ConsentGranted", "BehaviorRecorded", "DecisionMade", "PersonalDataAccessed"}
    (decided,) = [one["content"] for one in records if one["schema"].endswith("DecisionMade")]
    assert {"identity", "consent", "served"} <= {step["stage"] for step in decided["explanation"]}
    assert {record["service"] for record in records} >= {"identity", "consent", "decision", "feedback"}
    read = [one["content"]["access"] for one in records if one["schema"].endswith("PersonalDataAccessed")]
    assert {"accessor": "officer", "reason": "the person asked"} in read
    code, error = comity("privacy", "export", known, f"--to={tmp_path / 'out'}")
    assert (code, error["error"]["reason"]) == (1, "FILE_EXISTS")


def test_who_is_erased_is_gone_and_the_receipt_proves_it(comity: Any, known: str, tmp_path: Path) -> None:
    """All services, all steps, a receipt that verifies; afterwards the same identity is somebody new."""
    code, receipt = comity("consent", "receipt", known)
    assert code == 0
    subject = f"--subject={receipt['receipt']['pii_principal_id']}"
    code, done = comity("privacy", "erase", known, "--yes", *OFFICER)
    assert (code, done["state"]) == (0, "ERASURE_STATE_COMPLETED")
    assert len(done["steps"]) == 20
    code, erased = comity("privacy", "receipt", done["erasure_id"])
    assert code == 0
    deleted = {
        one["service"]: sum(count["count"] for count in one["counts"])
        for one in erased["receipt"]["steps"]
        if one["step"] == "DELETE"
    }
    assert all(deleted[name] > 0 for name in ("identity", "decision", "feedback"))
    file = tmp_path / "erased.json"
    file.write_text(json.dumps(erased))
    (key,) = comity("privacy", "key")[1]["keys"]
    assert key["kid"] == erased["key_id"]
    published = base64.urlsafe_b64decode(key["x"] + "=").hex()
    result = CliRunner().invoke(app, ["privacy", "receipt", f"--verify={file}", f"--public-key={published}"])
    assert result.exit_code == 0
    file.write_text(json.dumps(erased).replace('"DELETE"', '"SUPPRESS"'))
    assert CliRunner().invoke(app, ["privacy", "receipt", f"--verify={file}"]).exit_code == 1
    for command in ("export", "erase"):
        given = (f"--to={tmp_path / 'no'}",) if command == "export" else ("--yes",)
        code, error = comity("privacy", command, subject, *given)
        assert (code, error["error"]["reason"]) == (1, "SUBJECT_ERASED")
    # What was agreed to can still be shown; what it was agreed by is somebody new.
    assert comity("consent", "receipt", subject, "--version=2")[1]["receipt"] == receipt["receipt"]
    assert comity("consent", "history", known)[1] == {}
    code, decided = comity("decide", "home_hero", known, "--deadline-ms=5000")
    assert decided["decisions"][0]["fallback_reason"] == "FALLBACK_REASON_NO_CONSENT"
    mistyped = f"--identity=user_id:{uuid.uuid4().hex}"
    for command_line in (("erase", mistyped, "--yes"), ("export", mistyped, f"--to={tmp_path / 'no'}")):
        code, error = comity("privacy", *command_line)
        assert (code, error["error"]["reason"]) == (1, "NOTHING_HELD")


def test_the_record_of_processing_joins_what_is_declared_with_where_it_is(comity: Any) -> None:
    """Every event and personal feature of the bundle with its reason, owner and store; every service's stores."""
    code, found = comity("privacy", "inventory", str(SHOP))
    assert code == 0
    assert {one["service"] for one in found["stored"]} == {"identity", "consent", "features", "decision", "feedback"}
    assert all(one["erasure"] for one in found["stored"])
    assert {one["kind"] for one in found["declared"]} == {"event", "feature", "placement"}
    assert all(one["stored_in"] and one["owner"] and one["why"] for one in found["declared"])


def test_a_scan_finds_what_lies_in_a_file_and_nothing_else(stack: Stack) -> None:
    """What is stored of a person is sealed or a pseudonym: a note on the disk is found, the person is not."""
    canary = f"somebody-{uuid.uuid4().hex}"
    note = stack.data_dir.path / "note.txt"

    def scan() -> Any:
        command = ["privacy", "scan", f"--canary={canary}", f"--data-dir={stack.data_dir.path}", "--json"]
        result = CliRunner().invoke(app, command)
        assert canary not in result.output
        return result.exit_code, json.loads(result.stdout)

    note.write_text(canary.encode().hex())
    try:
        code, found = scan()
        assert code == 1
        assert [(Path(one["file"]).name, one["found"][0]["form"]) for one in found["hits"]] == [("note.txt", "hex")]
    finally:
        note.unlink()
    code, found = scan()
    assert (code, found["hits"]) == (0, [])
    assert found["files"] > 100
