"""A person is never full: who gives way, and what the links say of it afterwards."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.identity.domain.identities import Pseudonym
from services.identity.domain.room import crowd
from services.identity.domain.subjects import MEMBERS_MAX, Link, Subject, apply, fold
from tests.unit.identity.test_subjects import links


def presented(link: Link) -> list[Pseudonym]:
    """What the link names, strongest first, as a command has it."""
    own = [Pseudonym(one.namespace, b"", one.member_id) for one in link.named]
    return sorted(own, key=lambda one: one.rank)


def made(new: Link, people: dict[str, Subject], refusing: frozenset[str] = frozenset()) -> Link:
    """The link with whom it lets go."""
    crowded = crowd(presented(new), people)
    leaving = frozenset() if crowded is None else crowded.leaving(refusing)
    assert leaving is not None
    return replace(new, gave_way=leaving)


@given(
    weeks=st.integers(0, 40),
    refusing=st.frozensets(st.integers(0, 40).map("a{}".format), max_size=8),
    taken_back=st.integers(0, 70),
)
def test_a_new_browser_every_week_is_linked_for_ever(weeks: int, refusing: frozenset[str], taken_back: int) -> None:
    """Never does the earliest, the newest, a strong one or one who refuses leave; the links alone say the same."""
    standing: list[Link] = []
    people: dict[str, Subject] = {}
    for link in links(*(f"u1 a{number}" for number in range(MEMBERS_MAX - 1 + weeks))):
        new = made(link, people, refusing)
        standing.append(new)
        people |= apply(new, people).people
        person = people["u1"]
        assert person.subject_id == "a0"
        assert {one.member_id for one in link.named} <= {one.member_id for one in person.members}
        assert new.gave_way.isdisjoint(refusing | {"a0", "u1"})
        assert all([one.merged_at for one in people[left].members] == [None] for left in new.gave_way)
    assert len(people["u1"].members) == min(MEMBERS_MAX, len(standing) + 1)
    assert fold(standing) == people
    without = [one for one in standing if one is not standing[taken_back % len(standing)]]
    assert all(len(subject.members) <= MEMBERS_MAX for subject in fold(without).values())


def test_a_link_taken_back_brings_back_whom_it_let_go() -> None:
    """As though it had never been made."""
    standing = links(*(f"u1 a{number}" for number in range(MEMBERS_MAX)))
    before = fold(standing[:-1])
    newest = made(standing[-1], before)
    assert newest.gave_way == {"a1"}
    assert fold([*standing[:-1], newest])["a1"].subject_id == "a1"
    assert fold(standing[:-1])["a1"] == before["u1"]


def test_a_person_of_whom_too_few_may_leave_stays_as_they_are() -> None:
    """Then the link is refused; that is told, and not made less of."""
    people = fold(links(*(f"u1 a{number}" for number in range(MEMBERS_MAX - 1))))
    (new,) = links("u1 a99")
    crowded = crowd(presented(new), people)
    assert crowded is not None
    assert crowded.leaving(frozenset(crowded.may_leave)) is None
    assert crowded.leaving(frozenset(crowded.may_leave[1:])) == frozenset(crowded.may_leave[:1])
