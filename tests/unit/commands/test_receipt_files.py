"""Receipts as files are verified by their content, whoever wrote them down."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.privacy.receipts import as_document, verify
from services.chassis.errors import ServiceError
from services.consent.domain.receipts import StepTaken, erasure_receipt
from services.consent.store.receipts import Ed25519Signer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def document(secret: bytes = b"s" * 32) -> dict[str, Any]:
    steps = [StepTaken("features", "DELETE", NOW, (("postgres", "states", 3),))]
    receipt = erasure_receipt("a shop", "e1", ["b" * 26], requested_at=NOW, completed_at=NOW, steps=steps)
    signed = Ed25519Signer(secret).sign(receipt)
    return as_document(
        SimpleNamespace(
            receipt=signed.receipt, signature=signed.signature, key_id=signed.key_id, public_key=signed.public_key
        )
    )


def refusal(text: str, public_key: str = "") -> str:
    with pytest.raises(ServiceError) as caught:
        verify(text, public_key)
    return caught.value.reason


def test_a_receipt_is_genuine_however_it_is_formatted() -> None:
    """Its content is what was signed; spaces and order are the editor's."""
    written = document()
    for text in (json.dumps(written), json.dumps(written, indent=4, sort_keys=True, ensure_ascii=False)):
        receipt, signed_by = verify(text, written["public_key"])
        assert (receipt["receipt_id"], signed_by) == ("e1", written["key_id"])


def test_any_change_of_the_content_is_noticed() -> None:
    """A count, a date, a name, an added field, a field that is gone."""
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda receipt: receipt["steps"][0]["counts"][0].update(count=4),
        lambda receipt: receipt.update(completed_at="2026-01-02T03:04:06.000000Z"),
        lambda receipt: receipt["party_identification"].update(pii_controller="another shop"),
        lambda receipt: receipt.update(more=1),
        lambda receipt: receipt.pop("gone_from"),
    ]
    for change in changes:
        written = document()
        change(written["receipt"])
        assert refusal(json.dumps(written)) == "RECEIPT_NOT_GENUINE"


def test_another_key_is_noticed_where_the_right_one_is_given() -> None:
    """Anybody can sign what they made up."""
    forged = document(b"f" * 32)
    assert verify(json.dumps(forged))
    assert refusal(json.dumps(forged), document()["public_key"]) == "RECEIPT_NOT_GENUINE"
    assert refusal(json.dumps({**forged, "public_key": document()["public_key"]})) == "RECEIPT_NOT_GENUINE"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"receipt": 1}',
        json.dumps({**document(), "receipt": {}}),
        '{"receipt": {}, "signature": "zz"}',
        "[" * 5000,
    ],
)
def test_what_is_no_receipt_is_refused(text: str) -> None:
    """With a typed error, whatever it is."""
    assert refusal(text) == "RECEIPT_UNREADABLE"


@pytest.mark.parametrize("command", ["consent", "privacy"])
def test_only_the_sites_key_makes_a_receipt_genuine(command: str, tmp_path: Path) -> None:
    """Anybody can sign: without the key that the site publishes it is told whose signature it is, and no more."""
    file, written = tmp_path / "receipt.json", document(b"f" * 32)
    file.write_text(json.dumps(written))

    def verified(*options: str) -> tuple[int, str, object]:
        asked = [command, "receipt", "--verify", str(file), *options]
        told, as_json = (CliRunner().invoke(app, [*asked, *more]) for more in ((), ("--json",)))
        assert told.exit_code == as_json.exit_code
        genuine = json.loads(as_json.stdout)["genuine"] if not as_json.exit_code else False
        return told.exit_code, " ".join(told.stdout.split()), genuine

    code, words, genuine = verified()
    assert (code, genuine) == (0, None)
    assert words.startswith(f"signed by {written['key_id']}, not checked")
    code, words, genuine = verified("--public-key", written["public_key"])
    assert (code, genuine, words.partition(":")[0]) == (0, True, "genuine")
    assert verified("--public-key", document()["public_key"]) == (1, "", False)
