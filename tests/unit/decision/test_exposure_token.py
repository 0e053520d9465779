"""The exposure token proves exactly what was signed, with the same key, until it expires."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Kind, ServiceError
from services.chassis.exposure_token import ExposureClaim, sign, verify

KEY = b"k" * 32
NOW = datetime(2026, 11, 21, tzinfo=UTC)
CLAIM = ExposureClaim("0123456789abcdef" * 2, "a" * 26, "home_hero", NOW + timedelta(hours=1))

members = st.binary(min_size=16, max_size=16).filter(any)


def refusal(key: bytes, token: bytes, now: datetime = NOW) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        verify(key, token, now)
    return caught.value


def test_a_token_proves_what_was_signed() -> None:
    """What goes in comes out, and it is short enough for a header."""
    token = sign(KEY, CLAIM)
    assert verify(KEY, token, NOW).decision_id == CLAIM.decision_id
    assert verify(KEY, token, NOW).placement_id == CLAIM.placement_id
    assert len(token) <= 128


@given(member=members, placement=st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True))
def test_every_member_and_placement_survives_the_round_trip(member: bytes, placement: str) -> None:
    """Any 128-bit member id and any placement id are carried exactly."""
    member_id = base64.b32encode(member).decode().rstrip("=").lower()
    claim = ExposureClaim("ab" * 16, member_id, placement, NOW + timedelta(seconds=1))
    assert verify(KEY, sign(KEY, claim), NOW) == claim


def test_a_decision_without_a_member_has_a_token_too() -> None:
    """Where identity could not say who it is, the claim's member is empty."""
    claim = ExposureClaim("ab" * 16, "", "home_hero", NOW + timedelta(seconds=1))
    assert verify(KEY, sign(KEY, claim), NOW) == claim


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused(position: int, bit: int) -> None:
    """No byte of a token can be changed."""
    token = bytearray(sign(KEY, CLAIM))
    token[position % len(token)] ^= 1 << bit
    assert refusal(KEY, bytes(token)).reason == "EXPOSURE_TOKEN_INVALID"


@pytest.mark.parametrize("token", [b"", b"short", b"\0" * 64])
def test_what_is_no_token_is_refused(token: bytes) -> None:
    """Garbage is a typed refusal that names the field."""
    error = refusal(KEY, token)
    assert error.kind is Kind.INVALID
    assert error.problems[0].field == "exposure_token"


def test_another_key_is_refused() -> None:
    """A token of another deployment proves nothing here."""
    assert refusal(b"x" * 32, sign(KEY, CLAIM)).reason == "EXPOSURE_TOKEN_INVALID"


def test_an_expired_token_is_refused() -> None:
    """From the second it expires on, a token is refused, and the refusal says what to do."""
    assert refusal(KEY, sign(KEY, CLAIM), NOW + timedelta(hours=1)).reason == "EXPOSURE_TOKEN_EXPIRED"
