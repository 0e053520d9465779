"""Which behavior fits its declared type."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feedback.domain.behavior import (
    Behavior,
    PropertyValue,
    digest_of,
    is_same,
    problem_of,
    stream_of,
    unknown_type,
)
from services.feedback.domain.rectification import Rectification, put_right
from tests.unit.feedback.world import BOOK, NOW, event, member, schema


@pytest.mark.parametrize(
    ("properties", "field"),
    [
        ({"query": "boots"}, None),
        ({"query": "boots", "results": 3.0, "spelled": True}, None),
        ({}, "properties.query"),
        ({"query": "boots", "size": 44.0}, "properties"),
        ({"query": 44.0}, "properties.query"),
        ({"query": "boots", "results": "3"}, "properties.results"),
        ({"query": "boots", "results": True}, "properties.results"),
        ({"query": "boots", "spelled": 1.0}, "properties.spelled"),
        ({"query": "boots", "results": math.nan}, "properties.results"),
        ({"query": "boots", "results": math.inf}, "properties.results"),
    ],
)
def test_properties_are_those_declared(properties: dict[str, PropertyValue], field: str | None) -> None:
    """A property that is missing, undeclared, of another kind or no number is named; a value never is."""
    problem = problem_of(event("1", "search", properties=properties), BOOK, NOW)
    assert (problem.field if problem else None) == field
    assert problem is None or "boots" not in problem.problem


def test_an_unknown_type_names_known_ones() -> None:
    """A refusal helps: it names the declared types, up to a number, or says that there are none."""
    assert unknown_type(BOOK).endswith("click, exposure, page_viewed, purchase, search")
    many = {f"t{n:03}": schema(f"t{n:03}") for n in range(50)}
    assert unknown_type(many).endswith("t019 and 30 more")
    assert "publish" in unknown_type({})


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), unique=True, min_size=2, max_size=8))
def test_different_events_have_different_streams(keys: list[tuple[str, str]]) -> None:
    """No two (member, event id) share a stream, and the same has the same."""
    clean = [(a.replace("\0", ""), b.replace("\0", "")) for a, b in keys]
    assert len({stream_of(a, b) for a, b in clean}) == len(set(clean))


def test_an_event_that_was_put_right_is_the_same_when_it_is_sent_again() -> None:
    """Also where a release before recorded it, which kept no digest of what its sender said."""
    said = digest_of("search", (), {"results": 3.0}, "")
    sent = Behavior("search", member("ann"), (), {"results": 3.0}, digest=said)
    asked = Rectification("r", (member("ann"),), "search", "results", 4.0)
    for stored in (sent, replace(sent, digest=b"")):
        right = put_right(stored, asked)
        assert right is not None
        assert right.properties == {"results": 4.0}
        assert is_same(right, sent)
