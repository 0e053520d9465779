"""Recorded histories of one subject's consent, and the checker that judges them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Act(StrEnum):
    """What a client did."""

    GRANT = "grant"
    REVOKE = "revoke"
    DECIDE_PERSONAL = "decide-personal"
    DECIDE_PLAIN = "decide-plain"


@dataclass(frozen=True, slots=True)
class Call:
    """A completed or abandoned call as its client saw it, on the client's monotonic clock.

    Args:
        began_s, ended_s: when it was sent and when its answer arrived; infinity when none did.
        ref: names the call in a report.
    """

    act: Act
    began_s: float
    ended_s: float
    ref: str = ""


def violations(history: Sequence[Call]) -> list[Call]:
    """Personal decisions that no linearization of the grants and revocations allows.

    Consent is a register: writes of one subject come one after another, each takes effect at some moment
    between its sending and its answer (or any later moment, when no answer came). A personal decision is lawful
    when at some moment between its sending and its answer the register may have held a grant. A plain one is
    always lawful: consent fails closed.
    """
    writes = sorted((c for c in history if c.act in (Act.GRANT, Act.REVOKE)), key=lambda c: c.began_s)
    return [c for c in history if c.act is Act.DECIDE_PERSONAL and not _may_be_granted(writes, c)]


def _may_be_granted(writes: Sequence[Call], decide: Call) -> bool:
    """Whether some state the register may hold during the decision is a grant."""
    grants = [w for w in writes if w.act is Act.GRANT and w.began_s <= decide.ended_s]
    return any(not _surely_overwritten(grant, writes, decide.began_s) for grant in grants)


def _surely_overwritten(grant: Call, writes: Sequence[Call], moment_s: float) -> bool:
    """Whether a revocation that surely came after the grant had surely taken effect at the moment."""
    return any(w.act is Act.REVOKE and w.began_s >= grant.ended_s and w.ended_s < moment_s for w in writes)
