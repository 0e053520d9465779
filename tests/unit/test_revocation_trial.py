"""What the trial of revocation counts as what, and which faults it is put through."""

from itertools import islice
from typing import Any

from bench.prove.faults import RECOVERY_S, Fault, Faults, Kind, Window, draw, kinds_of_all
from bench.prove.histories import Act, Call
from bench.prove.revocation import Pace, Tally, Trial

NOBODY: Any = None
REPLICAS = ["decision", "decision-2", "decision-3"]


def judged(*calls: Call, windows: tuple[Window, ...] = ()) -> Tally:
    faults = Faults(NOBODY, NOBODY, seed=0)
    faults.windows = list(windows)
    trial = Trial(NOBODY, Pace(), under_way=faults.under_way, stopped=faults.stopped)
    trial.judge(calls)
    return trial.tally


GRANTED = Call(Act.GRANT, 0.0, 1.0)
REVOKED = Call(Act.REVOKE, 2.0, 3.0)


def test_each_kind_of_violation_is_counted_as_itself() -> None:
    """Sent after the revocation is P1; emitted after it is P2; a refusal without reason is neither."""
    sent_after = Call(Act.DECIDE_PERSONAL, 3.1, 3.2, by="decision", arrived_s=3.3)
    emitted_after = Call(Act.DECIDE_PERSONAL, 1.9, 3.2, by="decision", arrived_s=3.3)
    refused = Call(Act.DECIDE_REFUSED, 1.2, 1.3, by="decision", arrived_s=1.4)
    told = judged(GRANTED, REVOKED, sent_after)
    assert (told.p1, told.p2, told.stalled, told.stale) == (1, 0, 0, 0)
    told = judged(GRANTED, REVOKED, emitted_after)
    assert (told.p1, told.p2, told.stalled, told.stale) == (0, 1, 0, 0)
    told = judged(GRANTED, refused)
    assert (told.p1, told.p2, told.stalled, told.stale) == (0, 0, 0, 1)


def test_only_a_replica_that_stood_still_meanwhile_is_excused_and_only_of_p2() -> None:
    """Not another one, not by another fault, and never a Decide that began after the revocation."""
    emitted_after = Call(Act.DECIDE_PERSONAL, 1.9, 3.2, by="decision-2", arrived_s=3.3)
    sent_after = Call(Act.DECIDE_PERSONAL, 3.1, 3.2, by="decision-2", arrived_s=3.3)
    stood_still = Window(Fault(Kind.STOP, "decision-2"), 2.5, 3.15)
    for window, excused in (
        (stood_still, True),
        (Window(Fault(Kind.STOP, "decision-3"), 2.5, 3.15), False),
        (Window(Fault(Kind.STOP, "decision-2"), 0.5, 1.5), False),
        (Window(Fault(Kind.KILL, "decision-2"), 2.5, 3.15), False),
    ):
        told = judged(GRANTED, REVOKED, emitted_after, windows=(window,))
        assert (told.p2, told.stalled) == ((0, 1) if excused else (1, 0)), window
    assert judged(GRANTED, REVOKED, sent_after, windows=(stood_still,)).p1 == 1


def test_an_answer_counts_as_outside_faults_only_once_everything_has_recovered() -> None:
    """A fault casts its shadow a little further than it lasts."""
    faults = Faults(NOBODY, NOBODY, seed=0)
    faults.windows = [Window(Fault(Kind.KILL, "nats"), 1.0, 2.0), Window(Fault(Kind.KILL, "nats"), 50.0, 51.0)]
    assert not faults.under_way(0.1, 0.9)
    assert faults.under_way(0.9, 1.1)
    assert faults.under_way(2.0 + RECOVERY_S / 2, 2.1 + RECOVERY_S / 2)
    assert not faults.under_way(2.1 + RECOVERY_S, 49.0)
    faults.windows.append(Window(Fault(Kind.KILL, "nats"), 60.0))
    assert faults.under_way(1_000.0, 1_001.0), "it is not healed yet"


def test_the_deck_holds_every_fault_and_is_dealt_by_the_seed() -> None:
    """Everything that revocation must survive comes up, in the same order for the same seed."""
    deck = kinds_of_all(REPLICAS)
    assert {fault.kind for fault in deck} == set(Kind)
    killed = {fault.target for fault in deck if fault.kind is Kind.KILL}
    assert killed == {*REPLICAS, "consent", "identity", "features", "postgres", "valkey", "nats"}
    assert {*REPLICAS, "consent", "postgres"} <= {fault.target for fault in deck if fault.kind is Kind.STOP}
    dealt = list(islice(draw(deck, 1), len(deck)))
    assert sorted((one.kind, one.target, one.called) for one in dealt) == sorted(
        (one.kind, one.target, one.called) for one in deck
    )
    assert dealt == list(islice(draw(deck, 1), len(deck)))
    assert dealt != list(islice(draw(deck, 2), len(deck)))
