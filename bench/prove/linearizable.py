"""Whether a history of one register of consent is linearizable: exactly, in one sweep over its moments. Pure.

Linearizable: every call can be given one moment between its sending and its answer, so that in the order of those
moments every read finds what was written last, and a refusal before any write. A write without an answer may have any
later moment, or none.

The sweep goes through sendings and answers in order of time and keeps every configuration that the register can be in:
its value, which of the writes under way have had their moment, and which of the reads under way have found theirs.
What makes it fast: a read is given its moment as soon as the value allows it, since that forbids nothing later; of two
configurations with the same value one is dropped when the other allows all that it allows; writes without an answer are
counted, not told apart. With few changes under way at a time, which is how people change their minds, a handful of
configurations is left, so that a history costs about as much as sorting it.

(Just-in-time linearization: Lowe, "Testing for linearizability", 2017; Wing and Gong, 1993. A brute-force search judges
small histories the same in the tests.)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.prove.histories import Call

# More would mean that a history was recorded wrongly, and would take for ever rather than fail.
CONFIGURATIONS_MAX = 20_000

Indices = frozenset[int]
_NONE: Indices = frozenset()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A state that the register can be in.

    Args:
        granted: what it holds.
        written: writes under way, with an answer to come, that have had their moment.
        found: reads under way that have had theirs.
        lost_grants, lost_revokes: how many of the writes that never had an answer took effect so far.
    """

    granted: bool = False
    written: Indices = _NONE
    found: Indices = _NONE
    lost_grants: int = 0
    lost_revokes: int = 0

    def allows_all_of(self, other: "Configuration") -> bool:
        """Whether whatever can follow *other* can follow this one."""
        return (
            self.granted == other.granted
            and self.written == other.written
            and self.found >= other.found
            and self.lost_grants <= other.lost_grants
            and self.lost_revokes <= other.lost_revokes
        )


def violations(history: Sequence[Call]) -> list[Call]:
    """The reads that no linearization allows, each judged without those before it that are in this list themselves.

    Empty if and only if the history is linearizable.
    """
    sweep = _Sweep([call for call in history if call.value is not None])
    return list(sweep.run())


class _Sweep:
    """One pass through the moments of a history."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._writes: set[int] = set()
        self._reads: set[int] = set()
        self._lost = {True: 0, False: 0}
        self._configurations = [Configuration()]

    def run(self) -> Iterator[Call]:
        """The reads that have to be taken out for the others to be linearizable."""
        for _, is_answer, index in _moments(self._calls):
            if not is_answer:
                self._send(index)
            elif index in self._writes:
                self._answer_write(index)
            elif not self._answer_read(index):
                yield self._calls[index]

    def _send(self, index: int) -> None:
        call = self._calls[index]
        if not call.is_write:
            self._reads.add(index)
        elif call.is_known:
            self._writes.add(index)
        else:
            self._lost[bool(call.value)] += 1
        self._settle(self._configurations)

    def _answer_write(self, index: int) -> None:
        """It has had its moment by now: where it had not, those configurations are none."""
        self._writes.discard(index)
        having = [one for one in self._configurations if index in one.written]
        self._settle(replace(one, written=one.written - {index}) for one in having)

    def _answer_read(self, index: int) -> bool:
        """Whether it can have found what it says; if not, it is as if it had never asked."""
        self._reads.discard(index)
        having = [one for one in self._configurations if index in one.found]
        self._settle(replace(one, found=one.found - {index}) for one in having or self._configurations)
        return bool(having)

    def _settle(self, begin: Iterable[Configuration]) -> None:
        """All configurations that can be reached at this moment from those given, without the needless ones."""
        kept: list[Configuration] = []
        open_ones = [self._reading(one) for one in begin]
        while open_ones:
            one = open_ones.pop()
            if any(other.allows_all_of(one) for other in kept):
                continue
            kept = [other for other in kept if not one.allows_all_of(other)]
            kept.append(one)
            assert len(kept) <= CONFIGURATIONS_MAX, "so many changes under way at once cannot be judged"
            open_ones.extend(self._reading(after) for after in self._writing(one))
        self._configurations = kept

    def _reading(self, one: Configuration) -> Configuration:
        """The configuration once every read that can find its value has found it."""
        found = {index for index in self._reads if self._calls[index].value is one.granted}
        return one if found <= one.found else replace(one, found=one.found | found)

    def _writing(self, one: Configuration) -> Iterator[Configuration]:
        """What can follow when one more of the writes under way has its moment."""
        for index in self._writes - one.written:
            yield replace(one, granted=bool(self._calls[index].value), written=one.written | {index})
        # What writes the value that is there already changes nothing, and is not used up.
        if not one.granted and one.lost_grants < self._lost[True]:
            yield replace(one, granted=True, lost_grants=one.lost_grants + 1)
        if one.granted and one.lost_revokes < self._lost[False]:
            yield replace(one, granted=False, lost_revokes=one.lost_revokes + 1)


def _moments(calls: Sequence[Call]) -> list[tuple[float, bool, int]]:
    """Sendings and answers in order of time; of what is at the same time the sendings first, for they overlap.

    A read without an answer says nothing, and is left out.
    """
    told = [(index, call) for index, call in enumerate(calls) if call.is_write or call.is_known]
    sent = [(call.began_s, False, index) for index, call in told]
    answered = [(call.ended_s, True, index) for index, call in told if call.is_known]
    return sorted([*sent, *answered])
