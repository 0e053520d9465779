"""What people type: read as they mean it, or refused with how to write it."""

import pytest
import typer

from cli.parsing import parse_facts, parse_identities


def test_an_identity_is_a_namespace_and_a_value() -> None:
    """The value may hold colons; the first one separates."""
    assert parse_identities(["user_id:42", "session_id:a:b"]) == {"user_id": "42", "session_id": "a:b"}


@pytest.mark.parametrize("texts", [["user_id"], ["user_id:"], [":42"], [""], ["user_id:1", "user_id:2"]])
def test_what_is_no_identity_is_refused(texts: list[str]) -> None:
    """A missing part, or two values of one namespace, are refused."""
    with pytest.raises(typer.BadParameter):
        parse_identities(texts)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20.0),
        ("-1.5", -1.5),
        ("true", True),
        ("false", False),
        ("phone", "phone"),
        ('"20"', "20"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_a_fact_is_a_number_a_boolean_or_text(text: str, value: object) -> None:
    """Quotes make text of what looks like a number."""
    found = parse_facts([f"key={text}"], "--context")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["hour", "=20", ""])
def test_what_is_no_fact_is_refused(text: str) -> None:
    """A key and a sign are needed."""
    with pytest.raises(typer.BadParameter):
        parse_facts([text], "--context")
