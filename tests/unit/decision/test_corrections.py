"""The log is told what was answered instead, for as long as it can be expected to listen."""

import pytest
from prometheus_client import REGISTRY

from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition
from services.decision.domain.attempts import Logged
from services.decision.domain.record import DecisionRecord
from services.decision.handlers import corrections
from services.decision.handlers.corrections import Corrections
from tests.unit.decision.fakes import DEAD, Harness, request

TAKEN = ServiceError(Kind.CONFLICT, "VERSION_CONFLICT", "another attempt was faster")
ERASED = ServiceError(Kind.FAILED_PRECONDITION, "SUBJECT_ERASED", "the subject was erased")


class Log:
    """A decision log that holds nothing and refuses these times; notes how much time each try had."""

    def __init__(self, *refusals: ServiceError) -> None:
        self.refusals = list(refusals)
        self.left_s: list[float | None] = []
        self.corrected = False

    def holds_key(self, member_id: str) -> bool:
        return True

    async def fetch_key(self, member_id: str) -> None:
        return None

    async def find(self, decision_id: str) -> Logged | None:
        return None

    async def amend(self, logged: Logged, record: DecisionRecord) -> LogPosition:
        raise AssertionError("there is nothing to amend")

    async def add(self, record: DecisionRecord, attempt_id: str = "") -> LogPosition:
        self.left_s.append(remaining_s())
        if self.refusals:
            raise self.refusals.pop(0)
        self.corrected = True
        return ORIGIN


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "PAUSES_S", (0.0, 0.0))


async def record() -> DecisionRecord:
    """Any record."""
    harness = Harness()
    answers = await harness.decide(request())
    return await harness.logged(answers.decisions[0].decision_id)


async def test_a_correction_waits_for_others_and_for_the_log() -> None:
    """After the last pause it is tried once more, with time of its own: that of the call is over."""
    log = Log(TAKEN, DEAD)
    with deadline_scope(0.0):
        behind = Corrections(log)
        behind.add(await record(), "attempt")
    await behind.drain()
    assert log.corrected
    assert log.left_s == [None, None, None]


def lost() -> float:
    """Corrections that an outage kept from the log."""
    return REGISTRY.get_sample_value("comity_corrections_lost_total", {"why": "DOWN"}) or 0.0


@pytest.mark.parametrize(("refusals", "tries"), [((ERASED,), 1), ((DEAD, DEAD, DEAD, DEAD), 3)])
async def test_a_correction_that_cannot_be_is_given_up(refusals: tuple[ServiceError, ...], tries: int) -> None:
    """Of somebody who was erased at once, and that is no loss; else after the last try, and counted."""
    log, before = Log(*refusals), lost()
    behind = Corrections(log)
    behind.add(await record(), "attempt")
    await behind.drain()
    assert not log.corrected
    assert len(log.left_s) == tries
    assert lost() - before == (tries == 3)
