"""Merge and unmerge: after a link was taken back, everybody is who they were without it, and nothing else.

Random histories of links, answers to purposes and behavior are lived twice over the services' own pure domains: with a
link somewhere in them that is taken back later, and without it. Afterwards both lives must agree on every person: the
members and when they joined, the subject's name, the holdout bucket, the verdict on every purpose and the facts that
features would add up. What is said and done while the persons are one stays with the member that it was recorded under.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from bench.prove.proof import Proof
from services.consent.domain.ledger import Answer, Collection, Standing, State, evolve
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, LEGITIMATE_INTEREST, Purpose
from services.consent.domain.verdicts import Evaluation, Member, Query, evaluate
from services.identity.domain.identities import NAMESPACES
from services.identity.domain.linking import unlink
from services.identity.domain.resolution import holdout_bucket
from services.identity.domain.subjects import Link, Named, Subject, apply, subject_of
from services.identity.domain.subjects import Member as Joined

START = datetime(2026, 11, 1, tzinfo=UTC)
SALT = "holdout"
STEPS_MAX = 14
PURPOSES = {
    name: Purpose(name, name, basis, "owner", 30, 1)
    for name, basis in (("ads", CONSENT), ("measurement", CONSENT), ("security", LEGITIMATE_INTEREST))
}
POLICY = Policy("1", PURPOSES)
STATES = (State.GRANTED, State.DENIED, State.REVOKED, State.OBJECTED)
# Few, so that they meet: a household with shared devices and an address of its own.
NAMES = {
    "user_id": ("u1", "u2"),
    "email_sha256": ("e1", "e2"),
    "anonymous_id": ("a1", "a2", "a3"),
    "device_id": ("d1", "d2"),
}
EVERYBODY = tuple(Named(NAMESPACES[namespace], name) for namespace, names in NAMES.items() for name in names)


@dataclass(frozen=True, slots=True)
class Linking:
    """A link is made; *order* is its place in the history."""

    order: int
    named: tuple[Named, ...]


@dataclass(frozen=True, slots=True)
class Unlinking:
    """The link made at *order* is taken back."""

    order: int


@dataclass(frozen=True, slots=True)
class Answering:
    """A member answers a purpose."""

    member_id: str
    purpose: str
    state: State


@dataclass(frozen=True, slots=True)
class Behaving:
    """A member does something."""

    member_id: str


Step = Linking | Unlinking | Answering | Behaving


@dataclass
class Life:
    """What the services hold after some steps."""

    links: dict[int, Link] = field(default_factory=dict)
    people: dict[str, Subject] = field(default_factory=dict)
    standings: dict[str, dict[str, Standing]] = field(default_factory=dict)
    facts: Counter[str] = field(default_factory=Counter)
    merged: bool = False

    def live(self, at: int, step: Step) -> None:
        """Take one step, as the services do."""
        now = START + timedelta(minutes=at)
        match step:
            case Linking():
                link = Link(f"L{step.order}", step.order, now, step.named)
                effect = apply(link, self.people)
                self.links[step.order] = link
                self.people |= effect.people
                self.merged = effect.merged
            case Unlinking():
                self._take_back(self.links[step.order])
            case Answering():
                collection = Collection(now, 1, POLICY.version)
                standing = self.standings.setdefault(step.member_id, {})
                version = max((one.consent_version for one in standing.values()), default=0) + 1
                answer = Answer(step.purpose, step.state, version, now, collection=collection)
                standing[step.purpose] = evolve(standing.get(step.purpose), answer)
            case Behaving():
                self.facts[step.member_id] += 1

    def _take_back(self, gone: Link) -> None:
        tangle = hanging_together(self.links.values(), gone)
        for name in {one.member_id for link in tangle for one in link.named}:
            self.people.pop(name, None)
        self.people |= unlink(gone.link_id, tangle).people
        del self.links[gone.order]

    def subject(self, member_id: str) -> Sequence[tuple[str, datetime | None]]:
        """The members of the person, and when they joined."""
        subject = self.people.get(member_id)
        return [(one.member_id, one.merged_at) for one in subject.members] if subject else [(member_id, None)]

    def verdicts(self, member_id: str, now: datetime) -> Evaluation:
        """What the person allows."""
        members = tuple(Member(name, at) for name, at in self.subject(member_id))
        return evaluate(Query(members, tuple(PURPOSES)), self.standings, POLICY, now)

    def state(self, now: datetime) -> dict[str, object]:
        """Everything that anybody could be told of each person."""
        found: dict[str, object] = {}
        for one in EVERYBODY:
            subject = self.subject(one.member_id)
            bucket = holdout_bucket(SALT, subject[0][0])
            facts = sum(self.facts[name] for name, _ in subject)
            found[one.member_id] = (tuple(subject), bucket, self.verdicts(one.member_id, now), facts)
        return found


class ConsentCopied(Life):
    """Wrong: a merge writes what stands for the whole person to each member, as systems do that merge profiles."""

    def live(self, at: int, step: Step) -> None:
        """See Life."""
        super().live(at, step)
        if isinstance(step, Linking) and self.merged:
            names = [name for name, _ in self.subject(step.named[0].member_id)]
            together: dict[str, Standing] = {}
            for name in names:
                for purpose, standing in self.standings.get(name, {}).items():
                    together[purpose] = max(together.get(purpose, standing), standing, key=lambda one: one.answered_at)
            self.standings |= {name: dict(together) for name in names}


class FactsMoved(Life):
    """Wrong: a merge records the younger members' behavior under the subject."""

    def live(self, at: int, step: Step) -> None:
        """See Life."""
        super().live(at, step)
        if isinstance(step, Linking) and self.merged:
            first, *others = [name for name, _ in self.subject(step.named[0].member_id)]
            for name in others:
                self.facts[first] += self.facts.pop(name, 0)


class NotFoldedAgain(Life):
    """Wrong: taking a link back sets the members that it named apart, whatever other links say."""

    def _take_back(self, gone: Link) -> None:
        for one in gone.named:
            left = [other for other in self.people[one.member_id].members if other.member_id != one.member_id]
            alone = subject_of([replace(self._member(one.member_id), merged_at=None)])
            if left:
                rest = subject_of([replace(left[0], merged_at=None), *left[1:]])
                self.people |= dict.fromkeys((other.member_id for other in left), rest)
            self.people[one.member_id] = alone
        del self.links[gone.order]

    def _member(self, member_id: str) -> Joined:
        return next(one for one in self.people[member_id].members if one.member_id == member_id)


VARIANTS: Mapping[str, Callable[[], Life]] = {
    "consent_copied_on_merge": ConsentCopied,
    "facts_moved_on_merge": FactsMoved,
    "unlink_without_fold": NotFoldedAgain,
}


@dataclass(frozen=True, slots=True)
class History:
    """Steps, of which one is a link and a later one takes it back."""

    steps: tuple[Step, ...]
    made: int
    taken_back: int


@dataclass(frozen=True, slots=True)
class Tried:
    """What living some histories twice found.

    Args:
        merging: histories whose link made two persons one.
        telling: those in which somebody's verdicts were other ones meanwhile.
    """

    histories: int
    differing: int
    merging: int
    telling: int


def history_of(rng: random.Random) -> History:
    """A random history; every link in it may still be taken back by a later step."""
    count = rng.randint(4, STEPS_MAX)
    made = rng.randrange(count - 1)
    taken_back = rng.randrange(made + 1, count)
    steps: list[Step] = []
    standing: set[int] = set()
    for at in range(count):
        if at == made:
            steps.append(_linking(at, rng, least=2))
        elif at == taken_back:
            steps.append(Unlinking(made))
        else:
            steps.append(_any_step(at, rng, standing))
            standing -= {one.order for one in steps[-1:] if isinstance(one, Unlinking)}
            standing |= {one.order for one in steps[-1:] if isinstance(one, Linking)}
    return History(tuple(steps), made, taken_back)


def differs(history: History, life: Callable[[], Life] = Life) -> tuple[bool, bool, bool]:
    """Whether both lives end differently, whether the link merged, and whether verdicts differed meanwhile."""
    with_it, without_it = life(), life()
    now = START + timedelta(minutes=len(history.steps))
    merged = told = False
    for at, step in enumerate(history.steps):
        with_it.live(at, step)
        if at in (history.made, history.taken_back):
            merged = merged or (at == history.made and with_it.merged)
            continue
        without_it.live(at, step)
        if history.made < at < history.taken_back and not told:
            told = any(
                with_it.verdicts(one.member_id, now).verdicts != without_it.verdicts(one.member_id, now).verdicts
                for one in EVERYBODY
            )
    return with_it.state(now) != without_it.state(now), merged, told


def run(count: int, seed: int, life: Callable[[], Life] = Life) -> Tried:
    """Live *count* random histories twice."""
    rng = random.Random(seed)
    found = [differs(history_of(rng), life) for _ in range(count)]
    return Tried(
        histories=count,
        differing=sum(different for different, _, _ in found),
        merging=sum(merged for _, merged, _ in found),
        telling=sum(told for _, _, told in found),
    )


def prove(count: int, teeth_count: int, seed: int) -> Proof:
    """The proof over *count* histories, and what it finds in the wrong variants over *teeth_count*."""
    right = run(count, seed)
    return Proof(
        trials=right.histories,
        failures=right.differing,
        teeth={name: run(teeth_count, seed, life).differing for name, life in VARIANTS.items()},
        facts={"merged": right.merging, "verdicts_differed_meanwhile": right.telling},
    )


def hanging_together(standing: Iterable[Link], with_: Link) -> list[Link]:
    """The links that can be reached through shared members: what the store reads to take one back."""
    reached, left = [with_], [link for link in standing if link is not with_]
    names = {one.member_id for one in with_.named}
    while more := [link for link in left if names & {one.member_id for one in link.named}]:
        reached += more
        left = [link for link in left if link not in more]
        names |= {one.member_id for link in more for one in link.named}
    return reached


def _any_step(at: int, rng: random.Random, standing: set[int]) -> Step:
    kind = rng.random()
    if kind < 0.3:
        return _linking(at, rng, least=1)
    if kind < 0.4 and standing:
        return Unlinking(rng.choice(sorted(standing)))
    member_id = rng.choice(EVERYBODY).member_id
    if kind < 0.8:
        return Answering(member_id, rng.choice(sorted(PURPOSES)), rng.choice(STATES))
    return Behaving(member_id)


def _linking(order: int, rng: random.Random, *, least: int) -> Linking:
    """A link of some identities; never of two user ids, which is refused before."""
    while True:
        named = rng.sample(EVERYBODY, rng.randint(least, 3))
        if sum(one.namespace.authoritative for one in named) < 2:
            return Linking(order, tuple(named))
