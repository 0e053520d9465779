"""Who gives way where a link would make a person of more than MEMBERS_MAX members.

Browsers that forget their cookies give a person a new anonymous identity every week: the oldest of them tell nothing
any more, and a person must never be full for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.identity.domain.identities import Pseudonym
from services.identity.domain.permission import tried
from services.identity.domain.subjects import MEMBERS_MAX, People


@dataclass(frozen=True, slots=True)
class Crowd:
    """A person with too many members.

    Args:
        excess_count: how many have to leave.
        may_leave: who may, the one linked longest ago first.
    """

    excess_count: int
    may_leave: tuple[str, ...]

    def leaving(self, refusing: frozenset[str]) -> frozenset[str] | None:
        """Who leaves, given who has refused something: that goes on counting for the person. None: too few may."""
        chosen = [one for one in self.may_leave if one not in refusing][: self.excess_count]
        return frozenset(chosen) if len(chosen) == self.excess_count else None


def crowd(named: Sequence[Pseudonym], people: People) -> Crowd | None:
    """The crowd that a link of these identities would make; None where there is room.

    Only weak identities may leave, none that the link names, and never the earliest, which names the person and decides
    the holdout bucket.
    """
    _, *others = tried(named, people).members
    excess_count = 1 + len(others) - MEMBERS_MAX
    if excess_count <= 0:
        return None
    own = {one.member_id for one in named}
    weak = [one for one in others if not one.namespace.strong and one.member_id not in own]
    oldest_first = sorted(weak, key=lambda one: (one.merged_at is not None, one.merged_at, one.born, one.member_id))
    return Crowd(excess_count, tuple(one.member_id for one in oldest_first))
