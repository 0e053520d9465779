"""Receipts of changes of consent: computed from the ledger, always the same, worthless when a byte is changed."""

import json
from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.chassis.eventstore import PostgresEventStore
from services.chassis.status import from_call_error
from tests.integration.consent.rights_world import CONTROLLER

ALICE, CAROL = "a" * 26, "c" * 26


def who(subject_id: str) -> common_pb.SubjectRef:
    return common_pb.SubjectRef(subject_id=subject_id)


async def receipt(rights: Any, subject_id: str = ALICE, version: int = 0) -> pb.GetReceiptResponse:
    request = pb.GetReceiptRequest(
        subject=who(subject_id), consent_version=version, access=common_pb.Access(accessor="officer")
    )
    response: pb.GetReceiptResponse = await rights.privacy.GetReceipt(request, timeout=5)
    return response


def verify(found: pb.GetReceiptResponse, content: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(found.public_key).verify(found.signature, content)


async def test_a_receipt_says_what_was_agreed_to_and_is_signed(consent: Any, rights: Any) -> None:
    """One command is one receipt, with every purpose as it was declared then and the facts it is read from."""
    await consent.record("r1", who(ALICE), ads="GRANTED", measurement="DENIED")
    found = await receipt(rights)
    verify(found, found.receipt)
    content = json.loads(found.receipt)
    assert found.receipt == json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert content["pii_principal_id"] == ALICE
    assert content["party_identification"] == {"pii_controller": CONTROLLER}
    assert content["collection_method"] == "banner"
    assert [(one["purpose"], one["event_state"], one["expires_at"]) for one in content["purposes"]] == [
        ("ads", "granted", "never"),
        ("measurement", "denied", "not applicable"),
    ]
    assert {one["description"] for one in content["purposes"]} == {"what ads is for", "what measurement is for"}
    assert len(content["event_ids"]) == 2
    assert content["receipt_id"] == content["event_ids"][-1]


async def test_a_receipt_is_the_same_whenever_it_is_asked_for(consent: Any, rights: Any) -> None:
    """Also after the purposes have changed, of a grant and of a revocation, which names no policy itself."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    await consent.revoke("v1", who(ALICE), "ads")
    before = [await receipt(rights, version=version) for version in (1, 2)]
    await consent.publish("ads:2")
    await consent.record("r2", who(ALICE), ads="GRANTED")
    assert [(await receipt(rights, version=version)).receipt for version in (1, 2)] == [one.receipt for one in before]
    states = [json.loads((await receipt(rights, version=n)).receipt)["purposes"][0] for n in (1, 2, 3)]
    assert [(one["event_state"], one["purpose_version"]) for one in states] == [
        ("granted", 1),
        ("revoked", 1),
        ("granted", 2),
    ]
    assert json.loads((await receipt(rights)).receipt)["consent_version"] == 3


async def test_the_key_can_be_had_by_itself(consent: Any, rights: Any) -> None:
    """A site publishes it without a receipt of anybody; it is the one that receipts are signed with."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    found = await receipt(rights)
    key = await rights.privacy.GetReceiptKey(pb.GetReceiptKeyRequest(), timeout=5)
    assert (key.key_id, key.public_key) == (found.key_id, found.public_key)


async def test_a_changed_byte_is_noticed(consent: Any, rights: Any) -> None:
    """Whichever byte it is."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    found = await receipt(rights)
    for place in range(0, len(found.receipt), 7):
        changed = bytearray(found.receipt)
        changed[place] ^= 1
        with pytest.raises(InvalidSignature):
            verify(found, bytes(changed))


async def test_a_receipt_of_a_merged_person_is_of_the_newest_change(consent: Any, rights: Any) -> None:
    """Whichever member it was recorded under; that it was read is a fact."""
    rights.identity.members |= {ALICE: (ALICE, CAROL)}
    await consent.record("r1", who(ALICE), ads="GRANTED")
    await consent.record("r2", who(CAROL), ads="DENIED")
    assert json.loads((await receipt(rights)).receipt)["pii_principal_id"] == CAROL
    # A version is looked for first under the member that facts are recorded under now.
    assert json.loads((await receipt(rights, version=1)).receipt)["pii_principal_id"] == ALICE
    assert len(await PostgresEventStore(consent.pool).read_stream(f"access-{ALICE}")) == 2


async def test_an_erased_persons_receipts_can_still_be_read(consent: Any, rights: Any) -> None:
    """The ledger is the proof of what was agreed to, and outlives the person's data."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    before = await receipt(rights, version=1)
    request = pb.EraseRequest(request_id="e1", subject=who(ALICE), access=common_pb.Access(accessor="officer"))
    await rights.privacy.Erase(request, timeout=5)
    assert (await receipt(rights, version=1)).receipt == before.receipt


async def test_a_change_that_never_was_has_no_receipt(rights: Any) -> None:
    """Of somebody unknown, and of a version that the ledger has not reached."""
    for version in (0, 7):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await receipt(rights, version=version)
        assert from_call_error(caught.value).reason == "CONSENT_VERSION_UNKNOWN"
