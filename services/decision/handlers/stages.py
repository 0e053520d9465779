"""The time a Decide has, counted from its invocation, and how its stages end."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from opentelemetry.trace import Span

from services.chassis import tracing
from services.chassis.deadline import remaining_s
from services.chassis.errors import Kind, ServiceError
from services.decision.domain.vocabulary import StageOutcome

T = TypeVar("T")

# Kept of the caller's deadline for the way back: an answer that leaves at the deadline arrives after it.
ANSWER_MARGIN_S = 0.003

# How much of the budget is gone at the latest when a stage is abandoned. What a stage does not use the next one has;
# the last part is for the log, because an answer that is not in the log cannot be learned from.
RESOLVED_BY = 0.40
PREFETCHED_BY = 0.70
SCORED_BY = 0.80
RECORDED_BY = 0.96

# A stage that was abandoned after less than this did not fail: the budget was too short for it. A few times what one
# takes where nothing is wrong, and less than any has of the whole budget of a server.
USUAL_S = 0.01

TELL_AFTER_S = 0.1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Budget:
    """When a Decide began and how long it may take."""

    began_s: float
    seconds: float

    @classmethod
    def begin(cls, ceiling_s: float) -> "Budget":
        """The caller's remaining time less the way back, and never more than the ceiling."""
        left_s = remaining_s()
        seconds = ceiling_s if left_s is None else min(ceiling_s, left_s - ANSWER_MARGIN_S)
        return cls(asyncio.get_running_loop().time(), max(0.0, seconds))

    def at(self, share: float) -> float:
        """The moment, on the loop's clock, when this share of the budget is gone."""
        return self.began_s + share * self.seconds

    def spent_s(self) -> float:
        """Time since the invocation."""
        return asyncio.get_running_loop().time() - self.began_s

    def is_over(self) -> bool:
        """Whether an answer may no longer be emitted."""
        return self.spent_s() >= self.seconds


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """How a stage ended, and what it gave if it ended well.

    Args:
        too_short: it was abandoned before a stage usually ends.
    """

    outcome: StageOutcome
    value: T | None = None
    error: ServiceError | None = None
    too_short: bool = False


async def within(stage: str, work: Awaitable[T], until_s: float) -> Ended[T]:
    """Await *work* in a span of its own, abandoning it at *until_s* on the loop's clock; errors become outcomes."""
    with tracing.span(f"decision.{stage}") as span:
        ended = await _within(stage, work, until_s)
        if span.is_recording():
            tell_outcome(span, ended.outcome, ended.error)
    return ended


def tell_outcome(span: Span, outcome: StageOutcome, error: ServiceError | None = None) -> None:
    """Put on a stage's span how it ended. A refusal is an answer; what was late or away has failed."""
    span.set_attribute(tracing.COMITY_STAGE_OUTCOME, outcome.name)
    if outcome in (StageOutcome.LATE, StageOutcome.UNAVAILABLE):
        tracing.mark_failed(span, outcome.name if error is None else error.reason)


def is_too_short(until_s: float) -> bool:
    """Whether a stage that begins now and is abandoned at *until_s*, on the loop's clock, cannot be expected to end."""
    return until_s - asyncio.get_running_loop().time() < USUAL_S


async def _within(stage: str, work: Awaitable[T], until_s: float) -> Ended[T]:
    too_short = is_too_short(until_s)
    try:
        async with asyncio.timeout_at(until_s):
            return Ended(StageOutcome.OK, await work)
    except TimeoutError:
        return Ended(StageOutcome.LATE, too_short=too_short)
    except ServiceError as error:
        outcome = outcome_of(error)
        return Ended(outcome, error=error, too_short=too_short and outcome is StageOutcome.LATE)
    except Exception as error:
        # A bug behind a port must not cost the caller the answer.
        tell_later("stage failed", error, stage=stage)
        return Ended(StageOutcome.UNAVAILABLE)


def tell_later(event: str, error: Exception, *, stage: str) -> None:
    """Log a bug once the answer is out: rendering its traceback can take longer than a stage may."""
    asyncio.get_running_loop().call_later(TELL_AFTER_S, lambda: _log.error(event, exc_info=error, stage=stage))


def outcome_of(error: ServiceError) -> StageOutcome:
    """What an error of a stage counts as."""
    if error.kind is Kind.DEADLINE:
        return StageOutcome.LATE
    if error.kind in (Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.INTERNAL):
        return StageOutcome.UNAVAILABLE
    return StageOutcome.REFUSED
