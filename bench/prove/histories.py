"""What clients saw of one subject's consent for one purpose: who asked what, when, and what came of it. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Act(StrEnum):
    """What a call did to the register of consent, or read of it."""

    GRANT = "grant"
    REVOKE = "revoke"
    # A Decide that used the profile: it read a grant.
    DECIDE_PERSONAL = "decide-personal"
    # A Decide that was refused the profile: it read that there is no grant.
    DECIDE_REFUSED = "decide-refused"
    # A Decide that did without, for whatever other reason. It read nothing; consent fails closed.
    DECIDE_PLAIN = "decide-plain"


WRITES = (Act.GRANT, Act.REVOKE)
# What the register holds when the call takes effect; True is a grant.
VALUES = {Act.GRANT: True, Act.REVOKE: False, Act.DECIDE_PERSONAL: True, Act.DECIDE_REFUSED: False}


@dataclass(frozen=True, slots=True)
class Call:
    """A completed or abandoned call as its client saw it, on one monotonic clock.

    Args:
        began_s: when it was sent.
        ended_s: when its answer arrived (of a Decide: when it was emitted, where that is known). Infinity when none
            did: then a change may take effect at any later time, or never.
        ref: names the call in a report.
        by: the process that answered.
        arrived_s: when the answer of a Decide arrived; 0 where it is not told apart from *ended_s*.
    """

    act: Act
    began_s: float
    ended_s: float
    ref: str = ""
    by: str = ""
    arrived_s: float = 0.0

    @property
    def is_write(self) -> bool:
        """Whether it changes the register."""
        return self.act in WRITES

    @property
    def value(self) -> bool | None:
        """What it wrote or read; None when it read nothing."""
        return VALUES.get(self.act)

    @property
    def is_known(self) -> bool:
        """Whether its outcome is known."""
        return self.ended_s < math.inf


def emitted_after_revoke(history: Sequence[Call]) -> list[Call]:
    """P2: personal decisions emitted at a moment when a revocation had returned and no grant can have followed it.

    Each is judged on its own: until Revoke returns an answer may still be emitted, whatever others have read by then.
    """
    writes = [call for call in history if call.is_write]
    personal = (call for call in history if call.act is Act.DECIDE_PERSONAL)
    return [call for call in personal if not _may_be_granted(writes, call.ended_s)]


def _may_be_granted(writes: Sequence[Call], moment_s: float) -> bool:
    """Whether the register can hold a grant at the moment."""
    grants = [write for write in writes if write.act is Act.GRANT and write.began_s <= moment_s]
    return any(not _surely_overwritten(grant, writes, moment_s) for grant in grants)


def _surely_overwritten(grant: Call, writes: Sequence[Call], moment_s: float) -> bool:
    """Whether a revocation that surely came after the grant had surely taken effect at the moment."""
    return any(w.act is Act.REVOKE and w.began_s > grant.ended_s and w.ended_s < moment_s for w in writes)
