"""What commands print of the services' enums."""

from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as decision_pb

from cli.output import enum_word


def test_an_enum_is_told_by_its_word() -> None:
    """Without the prefix that all of its words share; nothing for what is not set."""
    assert enum_word(consent_pb.ConsentState.DESCRIPTOR, consent_pb.CONSENT_STATE_OBJECTED) == "OBJECTED"
    assert enum_word(decision_pb.FallbackReason.DESCRIPTOR, decision_pb.FALLBACK_REASON_NO_CONSENT) == "NO_CONSENT"
    assert enum_word(decision_pb.Reason.DESCRIPTOR, decision_pb.REASON_UNSPECIFIED) == ""


def test_a_word_of_a_newer_server_is_told_by_its_number() -> None:
    """The command is of no use to anybody if it breaks there."""
    assert enum_word(decision_pb.Reason.DESCRIPTOR, 4711) == "4711"
