"""What every service counts. What one alone does is in its own `metrics`: whatever is declared, a process shows.

Metrics are declared before use, with the few values that their labels may take.

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
RELAY_LAG_S = Gauge("comity_relay_lag_seconds", "Age of the oldest event that waits to be published.", ("service",))
INBOX_LAG_S = Gauge(
    "comity_inbox_lag_seconds", "Age of the oldest published message that waits to have its effect.", ("source",)
)
DEAD_LETTERS = Counter("comity_dead_letters", "Events put aside because they can never have their effect.", ("source",))
GATHER_BATCH_SIZE = Histogram(
    "comity_gather_batch_size", "Items that left together.", ("gatherer",), buckets=BATCH_BUCKETS
)
EVENTS_DROPPED = Counter("comity_events_dropped", "Events that were not stored, by why.", ("reason",))
ERASURE_STEPS = Counter("comity_erasure_steps", "Steps of erasures that were taken, again included.", ("step",))
PERSONAL_DATA_ACCESSES = Counter("comity_personal_data_accesses", "Reads of personal data by people.", ("method",))
ALARM = Gauge("comity_alarm", "1 while the alarm stands; they are declared in chassis.alarms.", ("alarm",))
SPANS_LOST = Counter("comity_spans_lost", "Spans that were not exported, by why.", ("why",))
LOOP_RESTARTS = Counter("comity_loop_restarts", "Background loops that crashed and were started again.", ("loop",))


def serve(port: int, host: str = "127.0.0.1") -> None:
    """Serve the metrics over HTTP from a thread of its own; port 0 serves none."""
    if port > 0:
        start_http_server(port, addr=host)
