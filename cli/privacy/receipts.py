"""Signed receipts as files: written so that a person can read them, and verified without asking anybody."""

import base64
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.chassis.errors import Kind, ServiceError, invalid
from services.consent.domain.receipts import canonical, key_id_of


def as_document(answer: Any) -> dict[str, Any]:
    """The receipt of a GetReceiptResponse or GetErasureResponse with what proves it; bytes as hex."""
    return {
        "receipt": json.loads(answer.receipt),
        "signature": answer.signature.hex(),
        "key_id": answer.key_id,
        "public_key": answer.public_key.hex(),
    }


def as_key_set(answer: Any) -> dict[str, Any]:
    """A GetReceiptKeyResponse as a JSON Web Key Set, the form in which sites publish keys (RFC 7517, RFC 8037)."""
    x = base64.urlsafe_b64encode(answer.public_key).rstrip(b"=").decode()
    key = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": answer.key_id, "x": x}
    return {"keys": [key]}


def verify(text: str, public_key: str = "") -> tuple[dict[str, Any], str]:
    """The receipt in a file and the id of the key that signed it, when its signature is right.

    Its formatting does not matter, its content does.

    Args:
        text: what as_document gave, as JSON.
        public_key: hex of the key it must be signed with; empty: the one it names. Anybody can sign with a key of their
            own: that proves only that it was not changed since, and nothing of who signed it.

    Raises:
        ServiceError: INVALID (RECEIPT_UNREADABLE), FAILED_PRECONDITION (RECEIPT_NOT_GENUINE).
    """
    try:
        document = json.loads(text)
        receipt: dict[str, Any] = document["receipt"]
        _ = receipt["receipt_id"]
        content, signature = canonical(receipt), bytes.fromhex(document["signature"])
        named = bytes.fromhex(document["public_key"])
        key = Ed25519PublicKey.from_public_bytes(named)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise invalid(
            "FILE", "is no receipt: give what `receipt --json` printed", reason="RECEIPT_UNREADABLE"
        ) from error
    if public_key and named.hex() != public_key.lower():
        raise _not_genuine("it is signed with another key than the one that was given")
    if document.get("key_id") != key_id_of(named):
        raise _not_genuine("it names another key than it holds")
    try:
        key.verify(signature, content)
    except InvalidSignature as error:
        raise _not_genuine("its content is not what was signed") from error
    return receipt, key_id_of(named)


def _not_genuine(problem: str) -> ServiceError:
    return ServiceError(Kind.FAILED_PRECONDITION, "RECEIPT_NOT_GENUINE", f"the receipt is not genuine: {problem}")


def not_completed() -> ServiceError:
    """The refusal to give a receipt of what is not done."""
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        "ERASURE_RUNNING",
        "the erasure is not done; `comity privacy status` says what is waited for, and the receipt comes with the end",
    )
