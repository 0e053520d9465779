"""Pseudonyms are derived, stable, and tell nothing of the identities."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.identity.domain.identities import (
    NAMESPACES,
    Contradiction,
    Identity,
    Level,
    member_id_of,
    pseudonym,
    pseudonyms,
)
from services.identity.domain.resolution import (
    Found,
    Query,
    Resolved,
    Sought,
    SubjectMember,
    answer,
    holdout_bucket,
    seek,
)

PEPPER = b"p" * 32

values = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=40)
identities = st.builds(Identity, st.sampled_from(sorted(NAMESPACES)), values)


@given(identity=identities)
def test_a_pseudonym_hangs_on_pepper_namespace_and_value(identity: Identity) -> None:
    """The same identity has the same pseudonym, and another one under another pepper or in another namespace."""
    own = pseudonym(PEPPER, identity)
    assert re.fullmatch("[a-z2-7]{26}", own.member_id)
    assert len(own.identity_hash) == 32
    assert own == pseudonym(PEPPER, identity)
    assert own.member_id == member_id_of(own.identity_hash)
    assert own.member_id != pseudonym(b"q" * 32, identity).member_id
    others = {pseudonym(PEPPER, Identity(name, identity.value)).member_id for name in NAMESPACES}
    assert len(others) == len(NAMESPACES)


def test_a_known_pseudonym_never_changes() -> None:
    """Facts lie under pseudonyms for years: the derivation is pinned."""
    assert pseudonym(PEPPER, Identity("user_id", "42")).member_id == "zsfzdxepnvvtpci737p3ouqrw4"


@given(identity=identities)
def test_no_representation_shows_a_value(identity: Identity) -> None:
    """What might be logged by accident names the namespace and nothing else."""
    marked = Identity(identity.namespace, f"canary-{identity.value}")
    assert "canary" not in repr(marked) + repr(Query((marked,))) + repr(pseudonym(PEPPER, marked))


@given(presented=st.lists(identities, min_size=1, max_size=8), seed=st.randoms())
def test_the_order_in_which_identities_are_presented_does_not_matter(presented: list[Identity], seed: object) -> None:
    """Shuffled and repeated identities are the same pseudonyms, strongest first, or the same contradiction."""
    shuffled = [*presented, presented[0]]
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    found = pseudonyms(PEPPER, presented)
    assert found == pseudonyms(PEPPER, shuffled)
    if not isinstance(found, Contradiction):
        assert [one.namespace.rank for one in found] == sorted(one.namespace.rank for one in found)


@pytest.mark.parametrize(
    ("presented", "problem"),
    [
        ((), "at least one"),
        ((Identity("user_id", "1"), Identity("user_id", "2")), "two different values of user_id"),
    ],
)
def test_what_cannot_be_one_person_is_refused_with_the_remedy(presented: tuple[Identity, ...], problem: str) -> None:
    """A contradiction names the field or namespace, never a value."""
    found = pseudonyms(PEPPER, presented)
    assert isinstance(found, Contradiction)
    assert re.search(problem, found.problem)


def test_two_browsers_may_be_one_person() -> None:
    """Only a user id is authoritative: two anonymous ids contradict nothing."""
    assert not isinstance(
        pseudonyms(PEPPER, (Identity("anonymous_id", "a"), Identity("anonymous_id", "b"))), Contradiction
    )


@pytest.mark.parametrize(
    ("namespaces", "level"),
    [
        (("user_id", "anonymous_id"), Level.KNOWN),
        (("email_sha256", "session_id"), Level.KNOWN),
        (("phone_sha256",), Level.KNOWN),
        (("session_id", "anonymous_id"), Level.PSEUDONYMOUS),
        (("device_id", "session_id"), Level.ANONYMOUS),
    ],
)
def test_the_strongest_identity_decides_who_it_is(namespaces: tuple[str, ...], level: Level) -> None:
    """Facts go under the strongest identity's member, and its kind is the level."""
    presented = tuple(Identity(name, "x") for name in namespaces)
    strongest = min(namespaces, key=list(NAMESPACES).index)
    first = pseudonym(PEPPER, Identity(strongest, "x"))
    assert seek(PEPPER, Query(presented)) == Sought(first.member_id, level, first=first)


def test_a_pseudonym_is_resolved_without_identities() -> None:
    """A reader of facts has only a member: it says who that is now, and no level."""
    assert seek(PEPPER, Query(subject_id="m" * 26)) == Sought("m" * 26, Level.UNSPECIFIED)


@pytest.mark.parametrize("query", [Query(), Query((Identity("user_id", "1"),), "m" * 26)])
def test_a_query_means_exactly_one_thing(query: Query) -> None:
    """Neither or both of identities and pseudonym is a contradiction."""
    assert isinstance(seek(PEPPER, query), Contradiction)


def test_an_unlinked_member_is_a_person_of_its_own() -> None:
    """Nothing has to be stored for somebody to be resolved."""
    resolved = answer(Sought("m" * 26, Level.KNOWN), Found(), "salt")
    assert isinstance(resolved, Resolved)
    assert resolved.subject_id == resolved.member_id == "m" * 26
    assert resolved.members == (SubjectMember("m" * 26),)


def test_holdout_buckets_are_even() -> None:
    """Over 100,000 subjects no tenth of the buckets is off by more than five standard deviations."""
    trials, tenths = 100_000, [0] * 10
    for number in range(trials):
        bucket = holdout_bucket("salt", f"member{number}")
        assert 0 <= bucket < 10_000
        tenths[bucket // 1000] += 1
    sigma = (trials * 0.1 * 0.9) ** 0.5
    assert all(abs(count - trials / 10) < 5 * sigma for count in tenths)
