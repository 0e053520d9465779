"""Attempts at one decision: retries, hedges and pages rendered twice, one after another or at once, under one id.

An answer that proves itself (a token, learnable) is what the log holds for good. What the log holds is a stream, whose
every version is written where the one before was read, so that of two writers one reads again; the newest version is
the decision:

- Version 1 names the attempt that made it, by its event id. That attempt answers it once it knows that it is in the
  log, and from then on never withdraws it: the common path costs one append.
- An attempt that does not learn that in time answers the default, which proves nothing, and settles behind the answer's
  back: it records the default as version 1 where there is none, and withdraws a version 1 that is its own.
- Every other attempt makes version 1 final before it answers it. What is final is not withdrawn any more.
- Where a slate stands, and an attempt that did not make it was answered the default, the record says so, whichever came
  first: the slate stays, and nobody learns from an immediate decision of which nobody knows what was shown.

No version ever changes the member that the stream is about: each is the attempt's own version 1 anew, or a copy.
"""

from dataclasses import dataclass, replace

from services.chassis.events import LogPosition
from services.decision.domain.record import DecisionRecord
from services.decision.domain.vocabulary import Activation


@dataclass(frozen=True, slots=True)
class Logged:
    """A decision as the log has it.

    Args:
        record: the newest version.
        version: of the stream.
        attempt_id: event id of version 1.
        position: of the newest version.
    """

    record: DecisionRecord
    version: int
    attempt_id: str
    position: LogPosition


def is_answerable(logged: Logged, attempt_id: str) -> bool:
    """Whether this attempt may answer what is logged as it is: nobody withdraws it any more."""
    return logged.record.final or logged.attempt_id == attempt_id


def made_final(record: DecisionRecord) -> DecisionRecord:
    """The record, not to be withdrawn any more."""
    return replace(record, final=True)


def settled(logged: Logged | None, attempt_id: str, answered: DecisionRecord) -> DecisionRecord | None:
    """What an attempt that *answered* the default has still to record; None when the log says enough."""
    if logged is None:
        return made_final(answered)
    record = logged.record
    if not record.is_of_request(answered):
        # Another request under the same id: nothing of its answer is said by this one's.
        return None
    if logged.attempt_id == attempt_id and not record.final:
        return made_final(answered)
    if record.default_also_answered or _shows(record) == _shows(answered):
        return None
    return _also_answered(record)


def is_told_apart(record: DecisionRecord) -> bool:
    """Whether it can be told what was shown: a deferred slate is shown where its token comes back."""
    return not record.default_also_answered or record.activation is not Activation.IMMEDIATE


def _also_answered(record: DecisionRecord) -> DecisionRecord:
    told = replace(record, default_also_answered=True)
    choice = replace(record.choice, learnable=record.choice.learnable and is_told_apart(told))
    return replace(told, choice=choice)


def _shows(record: DecisionRecord) -> tuple[list[str], list[str]]:
    return list(record.choice.slate.item_ids), list(record.choice.slate.variant_ids)
