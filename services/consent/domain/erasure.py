"""Erasures: which steps there are, in which order, and which comes next. Pure; what a step does is each service's.

    SUPPRESS      everywhere: nothing about the person is stored any more
    WITHDRAW      what the person contributed to is as though they had never been
    DESTROY_KEYS  what was sealed cannot be read any more, wherever a copy of it lies
    DELETE        every row in every store

A step begins when every service has taken the one before: the withdrawal reads once more what the keys open.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from services.chassis.errors import Kind, ServiceError
from services.consent.domain.receipts import Counts, Signed, StepTaken

# In this order within a step, too: it is the order that progress is shown in.
SERVICES = ("identity", "consent", "features", "decision", "feedback")
# Waiting before a failed step is tried again: soon at first, and for ever.
DELAY_S_MIN, DELAY_S_MAX = 0.5, 60.0


class Step(IntEnum):
    """The steps in their order; the numbers are those of comity.common.v1.ErasureStep."""

    SUPPRESS = 1
    WITHDRAW = 2
    DESTROY_KEYS = 3
    DELETE = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one service stands with one step.

    Args:
        taken_at: None while it is not taken.
        waiting_for: reason of the last failure; empty where there was none.
    """

    service: str
    step: Step
    taken_at: datetime | None = None
    counts: Counts = ()
    waiting_for: str = ""


@dataclass(frozen=True, slots=True)
class Erasure:
    """An erasure as it stands.

    Args:
        number: its place in the ledger.
        completed_at: None while it runs; then *receipt* is None, too.
        steps: those that were taken or tried.
    """

    number: int
    erasure_id: str
    subject_id: str
    member_ids: tuple[str, ...]
    requested_at: datetime
    completed_at: datetime | None = None
    receipt: Signed | None = None
    steps: tuple[Progress, ...] = ()

    @property
    def taken(self) -> set[tuple[str, Step]]:
        """What was done."""
        return {(one.service, one.step) for one in self.steps if one.taken_at is not None}

    def plan(self) -> tuple[Progress, ...]:
        """Every step of every service in order, as it stands."""
        known = {(one.service, one.step): one for one in self.steps}
        return tuple(known.get((service, step), Progress(service, step)) for step in Step for service in SERVICES)

    def steps_taken(self) -> list[StepTaken]:
        """What the receipt tells, in order of the plan."""
        return [
            StepTaken(one.service, one.step.name, one.taken_at, one.counts)
            for one in self.plan()
            if one.taken_at is not None
        ]


def next_steps(taken: Collection[tuple[str, Step]]) -> list[tuple[str, Step]]:
    """What can be done now: the services that have not taken the earliest step that some have not; empty: done."""
    for step in Step:
        missing = [(service, step) for service in SERVICES if (service, step) not in taken]
        if missing:
            return missing
    return []


def delay_s_after(failures_count: int) -> float:
    """How long to wait after this many failures in a row, at least one."""
    return float(min(DELAY_S_MAX, DELAY_S_MIN * 2 ** min(failures_count - 1, 20)))


def refuse_overlap(standing: Sequence[tuple[str, bool]]) -> None:
    """Returns when none of a person's members is in an erasure.

    Args:
        standing: (erasure_id, whether it runs) of the erasures that name any of the members.

    Raises:
        ServiceError: FAILED_PRECONDITION (ERASURE_RUNNING, SUBJECT_ERASED).
    """
    running = next((erasure_id for erasure_id, runs in standing if runs), None)
    if running is not None:
        raise erasure_running(running)
    if standing:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "SUBJECT_ERASED",
            f"the person was erased by {standing[0][0]}: nothing is held any more; its receipt tells what went",
        )


def erasure_running(erasure_id: str) -> ServiceError:
    """The refusal while an erasure runs; its text names it."""
    return ServiceError(
        Kind.FAILED_PRECONDITION,
        "ERASURE_RUNNING",
        f"the person is being erased by {erasure_id}; GetErasure tells how far it is",
    )


def nothing_held() -> ServiceError:
    """The refusal to export or erase somebody of whom there is nothing."""
    return ServiceError(
        Kind.NOT_FOUND,
        "NOTHING_HELD",
        "subject: nothing is held about this person; see whether the identity is the right one",
    )


def erasure_unknown() -> ServiceError:
    """The refusal of an id that names no erasure."""
    return ServiceError(Kind.NOT_FOUND, "ERASURE_UNKNOWN", "erasure_id: there is no such erasure in the ledger")
