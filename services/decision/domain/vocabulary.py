"""The words of a decision, as numbers that the log keeps for ever (decision_events.proto; tests hold the two equal)."""

from services.chassis.words import Word


class Level(Word):
    """How well the person is known from the identities presented."""

    UNSPECIFIED = 0
    ANONYMOUS = 1
    PSEUDONYMOUS = 2
    KNOWN = 3


class Reason(Word):
    """Why a slate is what it is."""

    UNSPECIFIED = 0
    RANKED = 1
    EXPLORED = 2
    HOLDOUT = 4
    POPULAR = 11
    DEFAULT = 13
    DISABLED = 14
    UNKNOWN = 15
    ERROR = 16


class FallbackReason(Word):
    """Why the answer is not the one that was aimed for."""

    UNSPECIFIED = 0
    DEADLINE_EXCEEDED = 1
    NO_CONSENT = 2
    CONSENT_UNAVAILABLE = 3
    DO_NOT_PERSONALIZE = 4
    IDENTITY_UNAVAILABLE = 6
    FEATURES_UNAVAILABLE = 8
    MODEL_UNAVAILABLE = 10
    NO_ELIGIBLE_CANDIDATES = 11
    OVERLOADED = 13
    POLICY_DISABLED = 14
    LOG_UNAVAILABLE = 15


class Exclusion(Word):
    """Why a candidate was not eligible; NONE where it was."""

    NONE = 0
    INELIGIBLE = 1
    EXCLUDED_BY_CALLER = 2
    SHOWN_ELSEWHERE = 3
    UNKNOWN_ITEM = 4
    RETIRED = 5
    NO_VARIANT = 6
    RULE_ERROR = 7


class Activation(Word):
    """When a decision counts as seen."""

    UNSPECIFIED = 0
    IMMEDIATE = 1
    DEFERRED = 2


class StageOutcome(Word):
    """How a stage of a Decide ended; UNSPECIFIED while it has not."""

    UNSPECIFIED = 0
    OK = 1
    LATE = 2
    UNAVAILABLE = 3
    SKIPPED = 4
    REFUSED = 5


class Origin(Word):
    """Who made a decision."""

    UNSPECIFIED = 0
    SERVED = 1
    RECORDED = 2


class ValueState(Word):
    """Whether a value of a subject's vector may be used as it is."""

    UNSPECIFIED = 0
    PRESENT = 1
    MISSING = 2
    STALE = 3
