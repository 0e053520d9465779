"""Identities that recognize people without their help say nothing before the person has agreed to that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.identity.domain.identities import NAMESPACES, Contradiction, Identity, Level, pseudonym, pseudonyms
from services.identity.domain.permission import IDENTITY_LINKING, required_purposes
from services.identity.domain.resolution import Found, Query, Resolved, Sought, SubjectMember, answer, seek

PEPPER = b"p" * 32
GATED = [one for one in NAMESPACES.values() if one.purpose]
UNGATED = [one for one in NAMESPACES.values() if not one.purpose]


def test_the_gated_namespaces_are_known() -> None:
    """Each needs a purpose of its own; they are the weakest, and none is strong."""
    assert {one.name: one.purpose for one in GATED} == {
        "device_fingerprint": "device_recognition",
        "third_party_id": "third_party_matching",
    }
    assert all(one.level is Level.ANONYMOUS and not one.strong and not one.authoritative for one in GATED)
    assert min(one.rank for one in GATED) > max(one.rank for one in UNGATED)


@given(
    ungated=st.lists(st.sampled_from(UNGATED), min_size=1, max_size=3, unique=True),
    gated=st.lists(st.sampled_from(GATED), max_size=2, unique=True),
)
def test_beside_any_other_identity_a_gated_one_says_nothing(ungated: list[object], gated: list[object]) -> None:
    """The answer is the same with and without it, whoever it is linked to."""
    own = tuple(Identity(one.name, "x") for one in ungated)  # type: ignore[attr-defined]
    others = tuple(Identity(one.name, "x") for one in gated)  # type: ignore[attr-defined]
    sought = seek(PEPPER, Query(others + own))
    assert sought == seek(PEPPER, Query(own))
    assert isinstance(sought, Sought)
    found = Found({pseudonym(PEPPER, one).member_id: (SubjectMember("s" * 26),) for one in others})
    resolved = answer(sought, found, "salt")
    assert isinstance(resolved, Resolved)
    assert resolved.required_purposes == ()
    assert resolved.subject_id == sought.member_id


@pytest.mark.parametrize("namespace", GATED, ids=lambda one: one.name)
def test_a_gated_identity_alone_recognizes_only_who_was_linked_to_it(namespace: object) -> None:
    """Whoever it was linked to is answered with the purpose; nobody is made up for an unknown one."""
    identity = Identity(namespace.name, "canary")  # type: ignore[attr-defined]
    sought = seek(PEPPER, Query((identity,)))
    assert isinstance(sought, Sought)
    nobody = answer(sought, Found(), "salt")
    assert isinstance(nobody, Contradiction)
    assert nobody.reason == "NAMESPACE_NOT_ALLOWED"
    assert namespace.purpose in nobody.problem  # type: ignore[attr-defined]
    assert "link" in nobody.problem
    assert "canary" not in nobody.problem
    both = (SubjectMember("s" * 26), SubjectMember(sought.member_id))
    linked = answer(sought, Found({sought.member_id: both}), "salt")
    assert isinstance(linked, Resolved)
    assert linked.subject_id == "s" * 26
    assert linked.required_purposes == (namespace.purpose,)  # type: ignore[attr-defined]
    assert linked.level is Level.ANONYMOUS


def test_a_link_needs_the_purpose_of_every_gated_identity_in_it() -> None:
    """Beside identity_linking, which every link needs."""
    named = pseudonyms(PEPPER, [Identity(name, "x") for name in ("user_id", "third_party_id", "device_fingerprint")])
    assert not isinstance(named, Contradiction)
    assert required_purposes(named) == (IDENTITY_LINKING, "device_recognition", "third_party_matching")
