"""What a service counts: every metric is declared here, before use, with the few values its labels may take.

A label never holds an id or anything a caller sent: that would be personal data, and one time series a person.
"""

from prometheus_client import Counter, Gauge, Histogram, start_http_server

# From a tenth of an empty call to far beyond any Decide budget.
LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

RPC_SERVER_LATENCY_S = Histogram(
    "comity_rpc_server_latency_seconds",
    "Time from a call's arrival at its handler to its answer.",
    ("method", "code"),
    buckets=LATENCY_BUCKETS_S,
)
RPC_SERVER_CALLS = Gauge("comity_rpc_server_calls", "Calls that are being answered.")
RPC_CLIENT_FAILURES = Counter("comity_rpc_client_failures", "Calls to other services that failed.", ("code",))
DECISIONS = Counter("comity_decisions", "Decisions by why they came out as they did.", ("reason", "fallback_reason"))
CORRECTIONS_LOST = Counter(
    "comity_corrections_lost", "Defaults that were answered and that the log was not told of, by why.", ("why",)
)
LINKS = Counter("comity_links", "Links that were made or taken back, by what that did.", ("effect",))
PLACEHOLDERS = Counter(
    "comity_identity_placeholders", "Identities that were ignored because their value names nobody.", ("namespace",)
)
DATA_KEYS_MINTED = Counter("comity_data_keys_minted", "Data keys that members were asked for and had none of.")
CONSENT_CHANGES = Counter("comity_consent_changes", "Answers that were recorded in the ledger.", ("state",))
CONSENT_VERDICTS = Counter("comity_consent_verdicts", "Purposes asked for, by whether they are allowed.", ("allowed",))
CONSENT_SIGNAL_PROBLEMS = Counter(
    "comity_consent_signal_problems",
    "Consent strings that cannot be relied on as they are, by why.",
    ("signal", "code"),
)
RELAY_LAG_S = Gauge("comity_relay_lag_seconds", "Age of the oldest event that waits to be published.", ("service",))
INBOX_LAG_S = Gauge(
    "comity_inbox_lag_seconds", "Age of the oldest published message that waits to have its effect.", ("source",)
)
DEAD_LETTERS = Counter("comity_dead_letters", "Events put aside because they can never have their effect.", ("source",))
GATHER_BATCH_SIZE = Histogram(
    "comity_gather_batch_size", "Items that left together.", ("gatherer",), buckets=BATCH_BUCKETS
)
BEHAVIOR_FOLDED = Counter("comity_behavior_folded", "Behavior events folded into features.")
PENDING_ITEMS_DROPPED = Counter(
    "comity_pending_items_dropped", "Behavior that counts without its item's categories: too much waits for items."
)
STATES_UNREADABLE = Counter("comity_states_unreadable", "Stored states that were passed over, by why.", ("reason",))
EVENTS_PUT_RIGHT = Counter(
    "comity_events_put_right", "Events that were stored other than they were sent, by what was not right.", ("what",)
)
EVENTS_DROPPED = Counter("comity_events_dropped", "Events that were not stored, by why.", ("reason",))
ERASURE_STEPS = Counter("comity_erasure_steps", "Steps of erasures that were taken, again included.", ("step",))
ERASURES = Gauge("comity_erasures", "Erasures: that run now, and that this process completed.", ("state",))
ERASURE_OLDEST_S = Gauge("comity_erasure_oldest_seconds", "Age of the oldest erasure that still runs.")
JOURNAL_LAG_S = Gauge(
    "comity_consent_journal_lag_seconds", "Age of the oldest refusal or erasure that is not in the journal."
)
PERSONAL_DATA_ACCESSES = Counter("comity_personal_data_accesses", "Reads of personal data by people.", ("method",))
EVENTS_WITHOUT_CONSENT = Counter(
    "comity_events_without_consent",
    "Events whose person did not agree to them, by what became of them and why.",
    ("effect", "reason", "signal"),
)
ALARM = Gauge("comity_alarm", "1 while the alarm stands; they are declared in chassis.alarms.", ("alarm",))
LOOP_RESTARTS = Counter("comity_loop_restarts", "Background loops that crashed and were started again.", ("loop",))


def serve(port: int, host: str = "127.0.0.1") -> None:
    """Serve the metrics over HTTP from a thread of its own; port 0 serves none."""
    if port > 0:
        start_http_server(port, addr=host)
