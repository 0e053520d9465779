"""Slates of other systems are recorded whatever the model does, and no model is run on the loop for them."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.chassis.clock import FakeClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN
from services.chassis.gather import Load
from services.decision.domain.layout import Floats
from services.decision.domain.request import PastDecision, Person
from services.decision.domain.vocabulary import FallbackReason, StageOutcome
from services.decision.handlers.past import RecordDecisions
from tests.unit.decision.fakes import DEAD, KEYS, Harness
from tests.unit.decision.world import ITEMS, NOW, PLACEMENT

COUNT = 20


def recording(harness: Harness) -> RecordDecisions:
    """RecordDecisions over the harness's fakes."""
    return RecordDecisions(
        serving=lambda: harness.serving,
        identity=harness.identity,
        consent=harness.consent,
        features=harness.features,
        log=harness.log,
        keys=KEYS,
        load=Load(),
        clock=FakeClock(NOW),
    )


def past(external_id: str) -> PastDecision:
    """A slate that was shown."""
    shown = [item.id for item in ITEMS[:3]]
    return PastDecision(external_id, "", (("user_id", "42"),), PLACEMENT.id, shown, NOW, (), {}, b"d" * 32)


async def test_what_was_recorded_before_is_scored_beside_the_loop_too() -> None:
    """A retry gives the same scores; a model that is dear holds up no Decide, then as now."""
    harness, ran_in = Harness(), set[threading.Thread]()
    quick = harness.ranker.score

    def score(matrix: Floats) -> Floats:
        ran_in.add(threading.current_thread())
        return quick(matrix)

    harness.ranker.score = score  # type: ignore[method-assign]
    record, slates = recording(harness), [past(f"past-{k}") for k in range(COUNT)]
    first = await record(slates)
    again = await record([*slates, past("new")])
    assert [result.already_recorded for result in first] == [False] * COUNT
    assert [result.already_recorded for result in again] == [True] * COUNT + [False]
    assert [result.decision_id for result in again[:COUNT]] == [result.decision_id for result in first]
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one.scores, other.scores)
    assert len(first[0].scores) == 3
    assert [result.position for result in again[:COUNT]] == [result.position for result in first]
    assert threading.current_thread() not in ran_in


async def test_a_retry_after_an_unknown_outcome_tells_where_it_lies() -> None:
    """Whoever waits for the position waits for what the first call recorded, too."""
    harness = Harness()
    record = recording(harness)
    (first,) = await record([past("past-1")])
    (again,) = await record([past("past-1")])
    assert (again.already_recorded, again.position) == (True, first.position)


async def test_another_decision_under_an_external_id_is_refused_and_costs_no_other() -> None:
    """It is not taken for the one that has the id, and its caller is told; signals are no part of what it says."""
    harness = Harness()
    record = recording(harness)
    (first,) = await record([past("past-1")])
    other = replace(past("past-1"), digest=b"o" * 32)
    refused, recorded, again = await record([other, past("past-2"), past("past-1")])
    assert (refused.refused, refused.decision_id, list(refused.scores)) == ("EXTERNAL_ID_REUSED", "", [])
    assert (recorded.refused, recorded.already_recorded) == ("", False)
    assert (again.refused, again.decision_id, again.already_recorded) == ("", first.decision_id, True)


@pytest.mark.parametrize("by_pseudonym", [False, True], ids=["identities", "pseudonym"])
@pytest.mark.parametrize("reason", ["NOBODY_NAMED", "NAMESPACE_NOT_ALLOWED", "SUBJECT_ERASED"])
async def test_a_decision_of_nobody_fails_alone(reason: str, *, by_pseudonym: bool) -> None:
    """Placeholders, a fingerprint that recognizes nobody, somebody erased: the others of the call are recorded."""
    harness = Harness()
    identity: Any = harness.identity
    known: Person = identity.person
    empty = (("user_id", "undefined"),)

    async def resolve(who: Any) -> Person:
        if who in (empty, "nobody"):
            raise ServiceError(Kind.INVALID, reason, "they are nobody's")
        return known

    identity.resolve = identity.describe = resolve
    nobodys = replace(past("past-2"), identities=() if by_pseudonym else empty, subject_id="nobody" * by_pseudonym)
    results = await recording(harness)([past("past-1"), nobodys, past("past-3")])
    assert [one.external_id for one in results] == ["past-1", "past-2", "past-3"]
    assert [bool(one.decision_id) for one in results] == [True, False, True]
    assert results[1].fallback_reason is FallbackReason.NO_CONSENT
    assert len(await harness.log.store.read_log(ORIGIN, limit=10)) == 2


async def test_an_outage_of_identity_records_nothing_of_a_call() -> None:
    """The call is made again: what was shown is not told apart from what nobody may be told of."""
    harness = Harness()
    harness.identity.fails = DEAD
    with pytest.raises(ServiceError, match="nobody answers"):
        await recording(harness)([past("past-1")])


async def test_a_model_that_breaks_costs_the_scores_and_not_the_record() -> None:
    """As in a Decide: what was shown is true whatever the model says of it."""
    harness = Harness()
    harness.ranker.fails = True
    record = recording(harness)
    for already in (False, True):
        (result,) = await record([past("past-1")])
        assert result.already_recorded is already
        assert (list(result.scores), result.fallback_reason) == ([], FallbackReason.MODEL_UNAVAILABLE)
    logged = await harness.logged(result.decision_id)
    assert logged.inputs.ranker is StageOutcome.UNAVAILABLE
    assert logged.inputs.matrix is not None
