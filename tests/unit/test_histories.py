"""The promise about answers in flight: which decisions were emitted although a revocation had returned."""

import math

from bench.prove.histories import Act, Call, emitted_after_revoke
from bench.prove.linearizable import violations


def history(*calls: tuple[Act, float, float]) -> list[Call]:
    return [Call(act, began, ended) for act, began, ended in calls]


def test_a_personal_decision_after_a_grant_is_lawful() -> None:
    """The plain case."""
    told = history((Act.GRANT, 0, 1), (Act.DECIDE_PERSONAL, 2, 3))
    assert violations(told) == emitted_after_revoke(told) == []


def test_a_personal_decision_sent_after_a_revocation_returned_is_caught() -> None:
    """The promise itself."""
    told = history((Act.GRANT, 0, 1), (Act.REVOKE, 2, 3), (Act.DECIDE_PERSONAL, 3.5, 4))
    assert violations(told) == emitted_after_revoke(told) == [told[2]]


def test_a_decision_that_overlaps_the_revocation_must_not_outlast_it() -> None:
    """It may have read before the revocation; then it must be out before the revocation returns."""
    told = history((Act.GRANT, 0, 1), (Act.REVOKE, 2, 3), (Act.DECIDE_PERSONAL, 1.9, 2.9))
    assert violations(told) == emitted_after_revoke(told) == []
    told = history((Act.GRANT, 0, 1), (Act.REVOKE, 2, 3), (Act.DECIDE_PERSONAL, 1.9, 3.1))
    assert violations(told) == []
    assert emitted_after_revoke(told) == [told[2]]


def test_what_others_have_read_does_not_bind_an_answer_in_flight() -> None:
    """Until Revoke returns an answer may still be emitted, also where another was already refused."""
    told = history((Act.GRANT, 0, 1), (Act.REVOKE, 2, 5), (Act.DECIDE_REFUSED, 3, 3.1), (Act.DECIDE_PERSONAL, 1.9, 4))
    assert emitted_after_revoke(told) == []


def test_a_decision_without_any_grant_is_caught() -> None:
    """Nobody was asked."""
    told = history((Act.DECIDE_PERSONAL, 0, 1))
    assert violations(told) == emitted_after_revoke(told) == told


def test_a_grant_in_flight_allows_and_a_later_one_does_not() -> None:
    """A grant may have taken effect as soon as it was sent, and never before."""
    assert violations(history((Act.GRANT, 1, 5), (Act.DECIDE_PERSONAL, 2, 3))) == []
    assert len(violations(history((Act.DECIDE_PERSONAL, 2, 3), (Act.GRANT, 4, 5)))) == 1


def test_a_revocation_without_an_answer_binds_nobody_yet() -> None:
    """It may never have arrived."""
    told = history((Act.GRANT, 0, 1), (Act.REVOKE, 2, math.inf), (Act.DECIDE_PERSONAL, 9, 10))
    assert violations(told) == emitted_after_revoke(told) == []


def test_a_grant_after_the_revocation_counts_again() -> None:
    """A person who comes back is personalized again."""
    told = history((Act.GRANT, 0, 1), (Act.REVOKE, 2, 3), (Act.GRANT, 4, 5), (Act.DECIDE_PERSONAL, 6, 7))
    assert violations(told) == emitted_after_revoke(told) == []
