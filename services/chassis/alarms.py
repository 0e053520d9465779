"""Alarms: what an operator must know of, and what to do about it. Every alarm is declared here.

A standing alarm is the metric `comity_alarm{alarm="…"} 1`, one ERROR line in the log, and a line of `comity status` and
`comity doctor`, which ask each process (chassis.operations). It is for what goes on until somebody acts or an outage
ends, not for single events: those have counters.
"""

from datetime import UTC, datetime
from enum import Enum

import structlog

from services.chassis import metrics

_log = structlog.get_logger(__name__)


class Alarm(Enum):
    """The alarms there are: name = (what is so, what to do about it), each a sentence without personal data."""

    MOST_FALL_BACK = (
        "Nearly all of the last decisions fell back, because something that they need is late or away.",
        "comity_decisions says by fallback_reason what it is, `comity why` says it of one decision; see that the other "
        "services answer, and that COMITY_DECISION_BUDGET_MS_MAX is not too short for this machine.",
    )
    DATABASE_FULL = (
        "Postgres has no room left for what this service records; nothing is lost that was acknowledged.",
        "Make room on the disk of Postgres; what waits is recorded by itself then.",
    )
    UNKNOWN_SETTING = (
        "A variable with the prefix of this service's settings is none of this release, and has no effect.",
        "The beginning of the service's log names it, and what is probably meant: correct it, or unset it.",
    )
    CACHE_TAKES_NO_WRITES = (
        "The cache of features takes no writes or does not answer; profiles are read from Postgres, which costs time.",
        "See that Redis or Valkey runs, is a primary, and has `maxmemory-policy allkeys-lru`.",
    )
    DEAD_LETTERS = (
        "Events, messages or rows could not be read and were put aside; everything behind them goes on.",
        "`comity doctor` lists them with their reasons; mend the cause, then `comity dead-letters retry` or `discard`.",
    )
    REVOKE_WAITS_TOO_SHORT = (
        "Consent's Revoke waits for shorter than a Decide may take; no profile is used, the default answers.",
        "Set COMITY_CONSENT_DECIDE_BUDGET_MS_MAX to COMITY_DECISION_BUDGET_MS_MAX or more.",
    )
    FACTS_WAIT = (
        "Facts have waited for more than a minute to be published, or to have their effect here; nothing is lost.",
        "comity_relay_lag_seconds and comity_inbox_lag_seconds say which; see that Postgres, NATS and the other "
        "services answer: this service's log names what it waits for.",
    )
    RULE_STOPPED = (
        "A rule of the site takes too much time or memory and is not evaluated: its placements answer the default.",
        "`comity check` names the rule; make it smaller and apply the site again.",
    )
    STORED_UNUSABLE = (
        "Something stored that this service goes by cannot be read or used: what was there before it, or the default, "
        "counts instead.",
        "`comity doctor` names the row; `comity apply` the site again, or mend the row, which is read again by itself.",
    )
    LOOP_CRASHES = (
        "A background loop of this process crashes again and again: what it does is not done.",
        "The log names the loop and the error (`loop crashed`); mend the row that it stops at, or upgrade.",
    )
    SPANS_LOST = (
        "Spans cannot be exported: traces of this time are lost, and nothing else.",
        "See that the collector at COMITY_<SERVICE>_OTLP_ENDPOINT runs and takes OTLP over gRPC, or that the disk with "
        "COMITY_<SERVICE>_TRACES_DIR has room.",
    )
    MODEL_STOPPED = (
        "A model that was chosen is refused, slow or wrong; the one before it, or popularity, decides instead.",
        "`comity models` says which and why; train it again, or `comity models activate` another one.",
    )
    JOURNAL_BEHIND = (
        "Refusals and erasures are not written into consent's journal: a restore would forget them.",
        "Make room on the disk of COMITY_CONSENT_JOURNAL_DIR, or mend it; consent's log names what it could not do.",
    )

    @property
    def label(self) -> str:
        """Its name in the metric, the log and `comity status`."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """What is so while it stands."""
        return self.value[0]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.value[1]


# Of this process: which alarms stand, and since when.
_since: dict[Alarm, datetime] = {}


def set_alarm(alarm: Alarm, stands: bool) -> None:
    """Raise or clear an alarm; what stands already is not told again, so it may be called as often as one looks."""
    if stands == (alarm in _since):
        return
    metrics.ALARM.labels(alarm.label).set(int(stands))
    if stands:
        _since[alarm] = datetime.now(UTC)
        _log.error("alarm_raised", alarm=alarm.label, cause=alarm.sentence, remedy=alarm.remedy)
    else:
        del _since[alarm]
        _log.info("alarm_cleared", alarm=alarm.label)


def standing() -> dict[Alarm, datetime]:
    """The alarms of this process that stand, and since when."""
    return dict(_since)
