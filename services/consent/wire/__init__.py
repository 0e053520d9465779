"""Consent's protobuf messages ↔ its domain: the only place that knows both."""

from services.consent.wire.calls import (
    consent_record,
    evaluation,
    person_of,
    query_of,
    record_of,
    resolve_request,
    revoke_of,
    who_of,
)
from services.consent.wire.facts import decode_answer, encode_answer, encode_policy
from services.consent.wire.policy import (
    declaration_of,
    decode_jurisdiction,
    decode_notice,
    decode_rule,
    encode_jurisdiction,
    encode_notice,
    encode_rule,
)

__all__ = [
    "consent_record",
    "declaration_of",
    "decode_answer",
    "decode_jurisdiction",
    "decode_notice",
    "decode_rule",
    "encode_answer",
    "encode_jurisdiction",
    "encode_notice",
    "encode_policy",
    "encode_rule",
    "evaluation",
    "person_of",
    "query_of",
    "record_of",
    "resolve_request",
    "revoke_of",
    "who_of",
]
