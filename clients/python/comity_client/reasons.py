"""The words that answers give as reasons, and what each means.

Each is text, so that `decision.reason == Reason.RANKED` holds. A server of a later release may give a word that is not
here: it arrives as its number, and is equal to none of these.
"""

from enum import StrEnum
from typing import Self

_RESERVED = "reserved: no release gives it yet"


class _Word(StrEnum):
    """A word with its meaning."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member


class Reason(_Word):
    """Why a slate, or an entry of it, is what it is."""

    RANKED = "RANKED", "the model put it in this order"
    EXPLORED = "EXPLORED", "drawn by chance, to learn from it"
    HOLDOUT = "HOLDOUT", "the person is in the share that gets the declared default, to compare with"
    POPULAR = "POPULAR", "what is popular; nothing about the person was used"
    DEFAULT = (
        "DEFAULT",
        "the default that the site declares; `fallback_reason` says why, empty: the audience is another",
    )
    DISABLED = "DISABLED", "the placement is switched off; the declared default"
    ERROR = "ERROR", "a rule of the site failed; the declared default"
    UNKNOWN = "UNKNOWN", "another system chose it, and only recorded it here"
    CLIENT_DEFAULT = "CLIENT_DEFAULT", "your own default, from `defaults`; `fallback_reason` and `cause` say why"
    STICKY = "STICKY", _RESERVED
    SPLIT = "SPLIT", _RESERVED
    TARGETING_MATCH = "TARGETING_MATCH", _RESERVED
    PRECOMPUTED = "PRECOMPUTED", _RESERVED
    CACHED = "CACHED", _RESERVED
    STALE = "STALE", _RESERVED
    SEGMENT = "SEGMENT", _RESERVED
    STATIC = "STATIC", _RESERVED


class FallbackReason(_Word):
    """Why the answer is not the one that was aimed for; those that begin with CLIENT are the client's own."""

    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED", "the answer was not ready in time"
    NO_CONSENT = "NO_CONSENT", "the person has not allowed it, or is nobody"
    CONSENT_UNAVAILABLE = "CONSENT_UNAVAILABLE", "consent could not be read, which counts as no"
    DO_NOT_PERSONALIZE = "DO_NOT_PERSONALIZE", "the person objects to personalization"
    IDENTITY_UNAVAILABLE = "IDENTITY_UNAVAILABLE", "identity did not say in time who it is"
    FEATURES_UNAVAILABLE = "FEATURES_UNAVAILABLE", "the features could not be read in time"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE", "no model could score in time"
    NO_ELIGIBLE_CANDIDATES = "NO_ELIGIBLE_CANDIDATES", "rules and exclusions left nothing that may be shown"
    OVERLOADED = "OVERLOADED", "the service has more to do than it can; ask less often"
    POLICY_DISABLED = "POLICY_DISABLED", "the placement is switched off"
    LOG_UNAVAILABLE = "LOG_UNAVAILABLE", "the log could not take the decision in time"
    SUPPRESSED = "SUPPRESSED", _RESERVED
    SUBJECT_UNKNOWN = "SUBJECT_UNKNOWN", _RESERVED
    FEATURES_STALE = "FEATURES_STALE", _RESERVED
    ALL_CAPPED = "ALL_CAPPED", _RESERVED
    CLIENT_DEADLINE_EXCEEDED = "CLIENT_DEADLINE_EXCEEDED", "no answer within `deadline_s`"
    CLIENT_UNAVAILABLE = "CLIENT_UNAVAILABLE", "the service cannot be reached; is it up, and the address right?"
    CLIENT_OVERLOADED = "CLIENT_OVERLOADED", "the service takes no more, or the call is too large"
    CLIENT_INVALID_ANSWER = "CLIENT_INVALID_ANSWER", "the answer is not one to this request"
    CLIENT_REFUSED = "CLIENT_REFUSED", "the request cannot be sent, or the service refused it as wrong"
    CLIENT_FORKED = "CLIENT_FORKED", "the process was forked from one in which a client was connected already"
    CLIENT_ERROR = "CLIENT_ERROR", "anything else, such as an address that leads to another service"


class TrackReason(_Word):
    """Why an event was REFUSED; of the rest `field` and `problem` tell."""

    EVENT_ID_REUSED = "EVENT_ID_REUSED", "the person has another event of that id: give each event its own"
    EXPOSURE_TOKEN_INVALID = "EXPOSURE_TOKEN_INVALID", "the proof is none of this decision: pass `decision` as it came"
    EXPOSURE_TOKEN_EXPIRED = "EXPOSURE_TOKEN_EXPIRED", "the decision was made too long ago to be answered"


class PeopleReason(_Word):
    """Why identify or a call of `consent` was REFUSED; `problem` tells more."""

    NOBODY_NAMED = "NOBODY_NAMED", "no identity can be somebody's"
    SUBJECT_ERASED = "SUBJECT_ERASED", "the person was erased: give identities, which name a new one from then on"
    IDENTITY_LINKING_NOT_ALLOWED = "IDENTITY_LINKING_NOT_ALLOWED", "one of them has not allowed that they be linked"
    NAMESPACE_NOT_ALLOWED = "NAMESPACE_NOT_ALLOWED", "an identity of this kind needs a purpose that was not allowed"
    IDENTITY_SHARED_TOO_OFTEN = (
        "IDENTITY_SHARED_TOO_OFTEN",
        "too many people have had this identity to tell whose it is",
    )
    SUBJECT_FULL = "SUBJECT_FULL", "the person has all the identities that one may have"
    ERASURE_RUNNING = "ERASURE_RUNNING", "the person is being erased"
    NOT_A_REQUEST = "NOT_A_REQUEST", "a value cannot be sent"
