"""Placeholders name nobody, in every namespace; a hash is one however it is written."""

import hashlib

import pytest

from services.identity.domain.identities import NAMESPACES, Contradiction, Identity, Namespace
from services.identity.domain.presented import BUILT_IN, NOBODY, placeholders, presented

KNOWN = placeholders(["Kiosk 1"])
HASHED = [one for one in NAMESPACES.values() if one.hashed]
PLAIN = [one for one in NAMESPACES.values() if not one.hashed]
SENT_FOR_NOBODY = [
    *("undefined", "null", "NULL", "0", "anonymous", "[object Object]", "None", "nan", "NaN", "-1", "", "   "),
    *('"undefined"', " null\n", "Kiosk 1", "kiosk 1", "00000000-0000-0000-0000-000000000000", "a\0b", "x" * 257),
]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("value", [*SENT_FOR_NOBODY, *BUILT_IN], ids=lambda value: repr(value)[:24])
def test_a_placeholder_names_nobody_alone_and_is_ignored_beside_others(namespace: str, value: str) -> None:
    """In whatever namespace it comes, and however it is written."""
    empty, own = Identity(namespace, value), Identity("session_id", "s1")
    assert presented([empty], KNOWN) is NOBODY
    assert presented([empty, own], KNOWN) == (own,)
    assert presented([own, empty], KNOWN) == (own,)


@pytest.mark.parametrize("namespace", [one.name for one in HASHED])
@pytest.mark.parametrize("value", ["", "undefined", "null", "NULL", "None", "NaN", "[object Object]", "0", "Kiosk 1"])
def test_the_hash_of_a_placeholder_names_nobody(namespace: str, value: str) -> None:
    """A program hashes what it has, also where it has nothing."""
    assert presented([Identity(namespace, hashed(value).upper())], KNOWN) is NOBODY


@pytest.mark.parametrize("namespace", [one.name for one in PLAIN])
@pytest.mark.parametrize("value", ["42", "1", "00", "nullify", "ann@undefined.example", "x" * 256])
def test_what_names_somebody_is_taken_as_it_is(namespace: str, value: str) -> None:
    """The whole value is compared, and nothing of it is changed."""
    assert presented([Identity(namespace, value)], KNOWN) == (Identity(namespace, value),)


def test_a_placeholder_of_the_site_is_one_at_that_site_only() -> None:
    """The bundle adds to the built-in list."""
    assert presented([Identity("user_id", "kiosk 1")], placeholders()) == (Identity("user_id", "kiosk 1"),)


@pytest.mark.parametrize("namespace", HASHED, ids=lambda one: one.name)
def test_a_hash_in_either_case_is_one_person(namespace: Namespace) -> None:
    """Languages print hex in either case."""
    digest = hashed("ann@example.com")
    lower, upper = (presented([Identity(namespace.name, each)], KNOWN) for each in (digest, digest.upper()))
    assert lower == upper == (Identity(namespace.name, digest),)


@pytest.mark.parametrize("namespace", HASHED, ids=lambda one: one.name)
@pytest.mark.parametrize("value", ["canary@example.com", "canary", hashed("canary")[:-1], hashed("canary") + "0"])
def test_what_is_no_hash_is_refused_and_not_repeated(namespace: Namespace, value: str) -> None:
    """A plain address in the place of its hash would be kept as one; the refusal holds nothing of it."""
    refused = presented([Identity("user_id", "1"), Identity(namespace.name, value)], KNOWN)
    assert isinstance(refused, Contradiction)
    assert refused.problem.startswith("identities[1].value is no SHA-256")
    assert "canary" not in repr(refused)
    assert value not in repr(refused)


def test_an_unknown_namespace_is_refused_also_with_a_placeholder() -> None:
    """What is wrong with the program is found on its first call, not when somebody logs in."""
    refused = presented([Identity("user_id", "1"), Identity("fax", "null")], KNOWN)
    assert isinstance(refused, Contradiction)
    assert refused.problem.startswith("identities[1].namespace is unknown: use one of user_id")
