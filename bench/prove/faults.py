"""Faults that a stack is put through while it works: drawn from a seed, one after the other, each healed and logged."""

import asyncio
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bench.prove.links import Links
from bench.prove.proxy import Link
from bench.world import VariantStack
from cli.stack.replicas import service_of
from services.chassis.errors import ServiceError

# After a fault everything has to find together again: channels look for a lost service once a second.
RECOVERY_S = 2.5
CALM_S = (2.0, 4.0)
LASTS_S = (0.2, 3.0)
DELAY_S = 0.15
COMMIT = (b"COMMIT;",)
STARTS_MAX = 3


class Kind(StrEnum):
    """What is done to a process, or to a line."""

    KILL = "kill"
    STOP = "stop"
    CUT = "cut"
    HOLD = "hold"
    HOLD_ANSWERS = "hold-answers"
    DELAY = "delay"
    LOSE_COMMITS = "lose-commits"
    LOSE_COMMIT_ANSWERS = "lose-commit-answers"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    Args:
        target: a process; of a fault of a line who calls, a service for all of its processes.
        called: of a fault of a line what is called, else empty.
        seconds: how long it lasts; after a kill the supervisor starts what was killed again.
    """

    kind: Kind
    target: str
    called: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        line = f"{self.target}→{self.called}" if self.called else self.target
        return f"{self.kind} {line} {self.seconds:.1f} s"


@dataclass(slots=True)
class Window:
    """When a fault was under way; *healed_s* is infinite until it is healed, and counts no recovery."""

    fault: Fault
    began_s: float
    healed_s: float = float("inf")

    def overlaps(self, began_s: float, ended_s: float, *, after_s: float = 0.0) -> bool:
        """Whether it was under way, or healed less than *after_s* ago, at some moment of the interval."""
        return self.began_s <= ended_s and began_s <= self.healed_s + after_s


def kinds_of_all(replicas: Sequence[str]) -> list[Fault]:
    """A deck with every fault that a promise about revocation must survive, decision running as these *replicas*."""
    servers = ("postgres", "valkey", "nats")
    kills = [*replicas, "consent", "consent", "identity", "features", *servers, "postgres"]
    stops = [*replicas, *replicas, "consent", "consent", "postgres", "postgres", "identity", "features", *servers[1:]]
    lines = [
        ("consent", "postgres"),
        ("decision", "postgres"),
        ("identity", "postgres"),
        ("features", "valkey"),
        ("features", "postgres"),
        ("consent", "nats"),
        ("decision", "nats"),
        *((name, called) for name in replicas for called in ("consent", "postgres")),
    ]
    held = [(name, "consent") for name in replicas] + [("consent", "postgres"), ("decision", "postgres")]
    return [
        *(Fault(Kind.KILL, name) for name in kills),
        *(Fault(Kind.STOP, name) for name in stops),
        *(Fault(Kind.CUT, *line) for line in lines),
        *(Fault(kind, *line) for line in held for kind in (Kind.HOLD, Kind.HOLD_ANSWERS, Kind.DELAY)),
        *(Fault(kind, "consent", "postgres") for kind in (Kind.LOSE_COMMITS, Kind.LOSE_COMMIT_ANSWERS)),
    ]


def draw(deck: Sequence[Fault], seed: int) -> Iterator[Fault]:
    """Faults of the deck in an order of chance, each lasting as long as chance says, and then again, for ever."""
    rng = random.Random(seed)
    while True:
        for fault in rng.sample(deck, len(deck)):
            yield replace(fault, seconds=rng.uniform(*LASTS_S))


class Faults:
    """Brings faults about, and knows when which was under way."""

    def __init__(self, stack: VariantStack, links: Links, *, seed: int) -> None:
        self._stack = stack
        self._links = links
        self._rng = random.Random(seed)
        self.windows: list[Window] = []

    async def run(self, faults: Iterator[Fault], stop: asyncio.Event, *, calm_s: tuple[float, float] = CALM_S) -> None:
        """One after another, with calm between them, until *stop* or the last."""
        began_s = time.monotonic()
        for fault in faults:
            await _pause(stop, self._rng.uniform(*calm_s))
            if stop.is_set():
                return
            print(f"{time.monotonic() - began_s:7.1f} s  {fault}", file=sys.stderr, flush=True)
            await self.inflict(fault)
            await asyncio.sleep(RECOVERY_S)

    async def inflict(self, fault: Fault) -> None:
        """One fault, from its begin until it is healed."""
        window = Window(fault, time.monotonic())
        self.windows.append(window)
        try:
            await self._inflict(fault)
        finally:
            window.healed_s = time.monotonic()

    def under_way(self, began_s: float, ended_s: float) -> bool:
        """Whether a fault, or the recovery from one, was under way at some moment of the interval."""
        # They come one after the other: before the first that had ended when this began, all had.
        for window in reversed(self.windows):
            if window.overlaps(began_s, ended_s, after_s=RECOVERY_S):
                return True
            if window.healed_s + RECOVERY_S < began_s:
                return False
        return False

    def stopped(self, name: str, began_s: float, ended_s: float) -> bool:
        """Whether the process stood still at some moment of the interval."""
        return any(
            window.overlaps(began_s, ended_s)
            for window in self.windows
            if window.fault.kind is Kind.STOP and window.fault.target == name
        )

    async def _inflict(self, fault: Fault) -> None:
        if fault.kind is Kind.KILL:
            await self._stack.kill(fault.target)
            await asyncio.sleep(fault.seconds)
            await self._start_again(fault.target)
        elif fault.kind is Kind.STOP:
            self._stack.pause(fault.target)
            await asyncio.sleep(fault.seconds)
            self._stack.resume(fault.target)
        else:
            links = self._lines(fault)
            for link in links:
                harm(link, fault.kind)
            await asyncio.sleep(fault.seconds)
            for link in links:
                link.heal()

    async def _start_again(self, name: str) -> None:
        """As a supervisor does: what does not come up is started once more."""
        for tries_left in reversed(range(STARTS_MAX)):
            try:
                await self._stack.restart(name)
                return
            except ServiceError as error:
                if not tries_left:
                    raise
                print(f"{name} did not start, once more: {error}", file=sys.stderr, flush=True)

    def _lines(self, fault: Fault) -> list[Link]:
        if fault.target == service_of(fault.target):
            return self._links.of(fault.target, fault.called)
        return [self._links[fault.target, fault.called]]


def harm(link: Link, kind: Kind) -> None:
    """Do to the link what the fault says."""
    match kind:
        case Kind.CUT:
            link.cut()
        case Kind.HOLD:
            link.hold()
        case Kind.HOLD_ANSWERS:
            link.answers.hold()
        case Kind.DELAY:
            link.answers.delay_s = DELAY_S
        case Kind.LOSE_COMMITS:
            link.lose(COMMIT)
        case Kind.LOSE_COMMIT_ANSWERS:
            link.lose(COMMIT, answer_only=True)
        case _:
            raise AssertionError(f"{kind} is no fault of a line")


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not past *stop*."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
