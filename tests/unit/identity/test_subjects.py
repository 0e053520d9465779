"""Subjects are the fold of the links that stand: nothing more, and nothing else."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.identity.domain.identities import NAMESPACES
from services.identity.domain.linking import unlink, without
from services.identity.domain.resolution import holdout_bucket
from services.identity.domain.subjects import (
    MEMBERS_MAX,
    Link,
    Named,
    Subject,
    apply,
    changes,
    fold,
)

START = datetime(2026, 11, 1, tzinfo=UTC)


def named(name: str) -> Named:
    """u1 → a user id, e1 → an e-mail, p a phone, a an anonymous, d a device, s a session id."""
    namespace = next(one for one in NAMESPACES.values() if one.name[0] == name[0])
    return Named(namespace, name)


def links(*statements: str) -> list[Link]:
    """`links("u1 a1", "u1 d1")`: one link after the other."""
    return [
        Link(f"L{order}", order, START + timedelta(minutes=order), tuple(named(name) for name in statement.split()))
        for order, statement in enumerate(statements, 1)
    ]


def persons(standing: Iterable[Link]) -> set[frozenset[str]]:
    """Who is one person, by the names of their members."""
    return {frozenset(one.member_id for one in subject.members) for subject in fold(standing).values()}


def hanging_together(standing: list[Link], with_: Link) -> list[Link]:
    """The links that can be reached through shared members: what the store reads to take one back."""
    reached, names = [with_], {one.member_id for one in with_.named}
    while more := [link for link in standing if link not in reached and names & {one.member_id for one in link.named}]:
        reached += more
        names |= {one.member_id for link in more for one in link.named}
    return reached


def one_person(*names: str) -> frozenset[str]:
    return frozenset(names)


# Few names, so that links collide; never two user ids in one link, which is refused before.
names = st.sampled_from(["e1", "e2", "p1", "a1", "a2", "a3", "d1", "d2", "s1"])
statements = (
    st.tuples(st.sampled_from(["", "u1", "u2", "u3"]), st.sets(names, max_size=4))
    .filter(any)
    .map(lambda parts: " ".join(filter(None, [parts[0], *sorted(parts[1])])))
)
histories = st.lists(statements, max_size=8).map(lambda said: links(*said))


def test_a_login_makes_the_visitor_known() -> None:
    """Anonymous and user become one person, who began with the anonymous visit."""
    people = fold(links("u1 a1"))
    assert people["u1"] is people["a1"]
    assert people["u1"].subject_id == "a1"
    assert people["u1"].members[0].merged_at is None
    assert people["u1"].members[1].merged_at == START + timedelta(minutes=1)


def test_a_person_known_before_keeps_name_and_bucket_on_a_new_device() -> None:
    """Once the user has links, what a later login brings along is younger."""
    people = fold(links("u1 a1", "u1 a2", "u1 e1 a3"))
    assert {people[name].subject_id for name in ("u1", "a1", "a2", "a3", "e1")} == {"a1"}


def test_the_longer_known_of_two_subjects_names_the_merged_one() -> None:
    """Earliest wins, whichever side the link was made from."""
    assert fold(links("a1 d1", "u1 e1", "u1 a1"))["u1"].subject_id == "a1"
    assert fold(links("u1 e1", "a1 d1", "u1 a1"))["u1"].subject_id == "u1"


def test_a_shared_device_merges_nobody() -> None:
    """It stays with the first person linked to it and moves nothing when others log in there."""
    assert persons(links("u1 d1", "u2 d1", "u3 d1")) == {one_person("u1", "d1"), one_person("u2"), one_person("u3")}


def test_visitors_of_a_shared_device_stay_apart_without_a_login() -> None:
    """A link of weak identities alone brings no subject along."""
    assert persons(links("a1 d1", "a2 d1")) == {one_person("a1", "d1"), one_person("a2")}


def test_weak_subjects_are_merged_by_a_strong_identity_only() -> None:
    """Two visitors become one person when one login names both, not before."""
    apart = links("a1 d1", "a2 d2", "a1 a2")
    assert persons(apart) == {one_person("a1", "d1"), one_person("a2", "d2")}
    assert persons(links("a1 d1", "a2 d2", "u1 a1 d2")) == {one_person("u1", "a1", "d1", "a2", "d2")}


def test_an_e_mail_brings_its_subject_to_a_user() -> None:
    """A strong identity merges two subjects that existed."""
    assert persons(links("e1 a1", "u1 a2", "u1 e1")) == {one_person("e1", "a1", "u1", "a2")}


def test_two_user_ids_are_two_people_with_one_e_mail() -> None:
    """A family's shared address does not make the family one person."""
    assert persons(links("u1 e1", "u2 e1")) == {one_person("u1", "e1"), one_person("u2")}
    assert persons(links("u1 e1", "u2 e2", "e1 e2")) == {one_person("u1", "e1"), one_person("u2", "e2")}


def test_a_link_takes_effect_when_the_one_in_its_way_is_taken_back() -> None:
    """Taking a link back is as though it had never been made, for the others too."""
    first, second = links("u1 d1", "u2 d1")
    assert persons([second]) == {one_person("u2", "d1")}
    unmerged, merged = changes(fold([first, second]), fold([second]))
    assert [(group.subject_id, group.member_ids) for group in unmerged] == [("d1", ("u1",))]
    assert [(group.subject_id, group.member_ids) for group in merged] == [("d1", ("u2",))]


def test_a_person_is_never_larger_than_readers_can_combine() -> None:
    """The join that would exceed the bound is left out, and said."""
    standing = links(*(f"u1 a{number}" for number in range(MEMBERS_MAX + 5)))
    people = fold(standing[: MEMBERS_MAX - 1])
    assert len(people["u1"].members) == MEMBERS_MAX
    effect = apply(standing[MEMBERS_MAX], people)
    assert effect.is_full
    assert not effect.merged
    assert max(len(subject.members) for subject in fold(standing).values()) == MEMBERS_MAX


@given(standing=histories, seed=st.randoms())
def test_the_order_within_a_link_does_not_matter(standing: list[Link], seed: object) -> None:
    """A link is a set: however it is written, the same people follow."""
    shuffled = []
    for link in standing:
        order = list(link.named)
        seed.shuffle(order)  # type: ignore[attr-defined]
        shuffled.append(replace(link, named=tuple(order)))
    assert fold(shuffled) == fold(standing)


@given(ours=histories, theirs=histories)
def test_links_that_share_nobody_commute(ours: list[Link], theirs: list[Link]) -> None:
    """What others do in between changes nobody: the same subjects, names and buckets."""
    strangers = [
        replace(
            link, order=link.order * 2, named=tuple(replace(one, member_id=f"x{one.member_id}") for one in link.named)
        )
        for link in theirs
    ]
    own = [replace(link, order=link.order * 2 + 1) for link in ours]
    together, alone = fold([*own, *strangers]), fold(own)
    assert {name: together[name] for name in alone} == alone


@given(visits=st.permutations(["a1", "a2", "d1", "e1", "s1"]))
def test_the_logins_of_one_person_may_come_in_any_order(visits: list[str]) -> None:
    """Links that all name the same user make the same person, whichever comes first."""
    assert persons(links(*(f"u1 {visit}" for visit in visits))) == {one_person("u1", "a1", "a2", "d1", "e1", "s1")}


@given(standing=histories, taken_back=st.integers(0, 7))
@example(standing=links("u1 d1", "u2 d1", "u2 a1"), taken_back=0)
def test_a_link_taken_back_leaves_nothing(standing: list[Link], taken_back: int) -> None:
    """People after Link and Unlink are the people without the Link, whatever came before and after it."""
    if not standing:
        return
    gone = standing[taken_back % len(standing)]
    tangle = hanging_together(standing, gone)
    change = unlink(gone.link_id, tangle)
    concerned = {one.member_id for link in tangle for one in link.named}
    stored = {name: subject for name, subject in fold(standing).items() if name not in concerned} | {**change.people}
    assert stored == fold(link for link in standing if link is not gone)


@given(standing=histories, said=statements)
def test_unlink_of_the_newest_link_restores_the_exact_people_before(standing: list[Link], said: str) -> None:
    """unlink(link(x)) is x: members, names, times and buckets."""
    before = fold(standing)
    newest = replace(links(said)[0], link_id="new", order=100)
    after = {**before, **apply(newest, before).people}
    assert after == fold([*standing, newest])
    assert fold(link for link in [*standing, newest] if link.link_id != "new") == before


@given(standing=histories)
def test_one_step_at_a_time_gives_the_fold(standing: list[Link]) -> None:
    """A link needs only the subjects it names: applying it to those is the same as folding everything again."""
    stored: dict[str, Subject] = {}
    for link in standing:
        needed = {stored[one.member_id].subject_id for one in link.named if one.member_id in stored}
        read = {name: subject for name, subject in stored.items() if subject.subject_id in needed}
        stored.update(apply(link, read).people)
    assert stored == fold(standing)


@given(standing=histories)
def test_people_are_a_partition_named_by_their_earliest_member(standing: list[Link]) -> None:
    """Every member is in one subject; exactly one of its members never joined another, and names it."""
    people = fold(standing)
    assert set(people) == {one.member_id for link in standing for one in link.named}
    for name, subject in people.items():
        ids = [one.member_id for one in subject.members]
        assert name in ids
        assert all(people[one] == subject for one in ids)
        assert [one.member_id for one in subject.members if one.merged_at is None] == [subject.subject_id]
        assert subject.members[0].age == min(one.age for one in subject.members)


@given(standing=histories)
def test_no_history_makes_two_user_ids_one_person(standing: list[Link]) -> None:
    """However devices and addresses are shared."""
    for subject in fold(standing).values():
        assert sum(one.namespace.authoritative for one in subject.members) <= 1


@given(standing=histories, said=statements)
def test_the_holdout_bucket_stays_with_the_earlier_person(standing: list[Link], said: str) -> None:
    """A link never gives a person who had links another bucket, unless an even earlier one joins."""
    before = fold(standing)
    newest = replace(links(said)[0], link_id="new", order=100)
    after = {**before, **apply(newest, before).people}
    for name, subject in before.items():
        joined = {before[one.member_id].subject_id for one in after[name].members if one.member_id in before}
        earliest = min(joined, key=lambda one: before[one].members[0].age)
        assert after[name].subject_id == earliest
        if earliest == subject.subject_id:
            assert holdout_bucket("s", after[name].subject_id) == holdout_bucket("s", subject.subject_id)


@given(standing=histories, said=statements)
def test_changes_say_exactly_what_moved(standing: list[Link], said: str) -> None:
    """Members that came to a subject are those whose subject before was another one."""
    before = fold(standing)
    newest = replace(links(said)[0], link_id="new", order=100)
    after = {**before, **apply(newest, before).people}
    left, came = changes(before, after)
    assert left == []
    moved = {name for group in came for name in group.member_ids}
    was = {name: before[name].subject_id if name in before else name for name in after}
    assert moved == {name for name, subject in after.items() if was[name] != subject.subject_id}
    back, joined = changes(after, before)
    assert joined == []
    assert {name for group in back for name in group.member_ids} == moved


@pytest.mark.parametrize("said", ["u1", "a1"])
def test_a_link_of_one_identity_states_nothing(said: str) -> None:
    """It is allowed, and nobody joins anybody."""
    assert persons(links(said)) == {one_person(said)}


@given(standing=histories, whom=st.integers(0, 20))
@example(standing=links("u1 d1", "u2 d1 a1", "u1 a2 d1"), whom=0)
def test_those_who_stay_are_as_though_the_erased_had_never_been(standing: list[Link], whom: int) -> None:
    """Erasing a person changes nobody else: names, members, times, buckets; also over shared devices and addresses."""
    people = fold(standing)
    if not people:
        return
    erased = frozenset(one.member_id for one in people[sorted(people)[whom % len(people)]].members)
    stay = {name: subject for name, subject in people.items() if name not in erased}
    assert fold(without(standing, erased)) == stay


@given(visits=st.lists(st.sampled_from(["u1 a2", "u1 d1", "u1 e1", "u1 a3 d2", "e1 a4", "u1 a1"]), max_size=6))
def test_the_bucket_of_the_first_visit_stays_through_every_login(visits: list[str]) -> None:
    """Who began as a1 is a1 on every device that they log in on, and has its bucket."""
    people = fold(links("u1 a1", *visits))
    assert people["u1"].subject_id == "a1"
    assert people["a1"].subject_id == "a1"
