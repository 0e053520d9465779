"""Declaring types of behavior."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import ServiceError
from services.feedback.domain.schemas import (
    EventProperty,
    EventSchema,
    PropertyKind,
    canonical,
    problems_of,
    with_published,
)
from services.feedback.handlers.publish import PublishEventSchemas
from tests.unit.feedback.world import BOOK, FakeSchemas, schema

QUERY = EventProperty("query", PropertyKind.STRING, required=True)


@pytest.mark.parametrize(
    ("schemas", "field"),
    [
        ([schema("decision")], "schemas[0].type"),
        ([schema("comity_event")], "schemas[0].type"),
        ([schema("a"), schema("a")], "schemas[1].type"),
        ([schema("exposure", reward=1.0)], "schemas[0].reward"),
        ([schema("a", reward_property="amount")], "schemas[0].reward_property"),
        ([schema("a", properties=(QUERY,), reward_property="query")], "schemas[0].reward_property"),
        ([schema("a", purposes=("p", "p"))], "schemas[0].purposes"),
        ([schema("a", properties=(QUERY, QUERY))], "schemas[0].properties[1].name"),
        (
            [schema("a", properties=(EventProperty("item_ids", PropertyKind.STRING),))],
            "schemas[0].properties[0].name",
        ),
    ],
)
def test_a_publication_with_a_mistake_is_refused(schemas: list[EventSchema], field: str) -> None:
    """The field that is wrong is named."""
    assert field in [problem.field for problem in problems_of(schemas, {})]


@pytest.mark.parametrize(
    "changed",
    [
        schema("search", properties=()),
        schema("search", properties=(EventProperty("query", PropertyKind.NUMBER, required=True),)),
        schema("page_viewed", purposes=(), properties=(EventProperty("page", PropertyKind.STRING, required=True),)),
        schema("page_viewed", purposes=(), item_required=True),
    ],
)
def test_what_senders_already_send_stays_valid(changed: EventSchema) -> None:
    """A declared property cannot vanish or change its kind, and nothing can become required."""
    assert problems_of([changed], BOOK)


def test_a_type_may_gain_optional_properties_and_purposes() -> None:
    """Additions are no problem, nor is declaring the same again."""
    wider = schema("page_viewed", purposes=("measurement",), properties=(EventProperty("page", PropertyKind.STRING),))
    assert problems_of([wider, BOOK["click"]], BOOK) == ()


@given(st.permutations(list(BOOK.values())))
def test_the_version_does_not_depend_on_order(schemas: list[EventSchema]) -> None:
    """The same declarations have the same canonical form."""
    assert canonical(with_published({}, schemas)) == canonical(BOOK)


async def test_validating_changes_nothing() -> None:
    """validate_only answers with the version that publishing gives, and publishes nothing."""
    schemas = FakeSchemas({})
    publish = PublishEventSchemas(schemas)
    promised = await publish([schema("a")], validate_only=True)
    assert schemas.declared == {}
    assert await publish([schema("a")], validate_only=False) == promised
    assert list(schemas.declared) == ["a"]


async def test_a_race_is_tried_again_and_given_up_on() -> None:
    """Someone who publishes at the same time is waited for; someone who never ends is told about."""
    schemas = FakeSchemas({})
    schemas.races = 2
    await PublishEventSchemas(schemas)([schema("a")], validate_only=False)
    schemas.races = 100
    with pytest.raises(ServiceError, match="someone else"):
        await PublishEventSchemas(schemas)([schema("b")], validate_only=False)


async def test_a_refusal_names_every_mistake() -> None:
    """All problems of a publication are told at once, and nothing of it is published."""
    schemas = FakeSchemas({})
    with pytest.raises(ServiceError) as raised:
        await PublishEventSchemas(schemas)([schema("outcome"), schema("decision")], validate_only=False)
    assert [problem.field for problem in raised.value.problems] == ["schemas[0].type", "schemas[1].type"]
    assert schemas.declared == {}
