"""What consent alone counts; every process has chassis.metrics beside it."""

from prometheus_client import Counter, Gauge

CONSENT_CHANGES = Counter("comity_consent_changes", "Answers that were recorded in the ledger.", ("state",))
CONSENT_VERDICTS = Counter("comity_consent_verdicts", "Purposes asked for, by whether they are allowed.", ("allowed",))
CONSENT_SIGNAL_PROBLEMS = Counter(
    "comity_consent_signal_problems",
    "Consent strings that cannot be relied on as they are, by why.",
    ("signal", "code"),
)
ERASURES = Gauge("comity_erasures", "Erasures: that run now, and that this process completed.", ("state",))
ERASURE_OLDEST_S = Gauge("comity_erasure_oldest_seconds", "Age of the oldest erasure that still runs.")
JOURNAL_LAG_S = Gauge(
    "comity_consent_journal_lag_seconds", "Age of the oldest refusal or erasure that is not in the journal."
)
