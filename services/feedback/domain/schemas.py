"""Declared types of behavior: what may be tracked, for which purposes, and what it is worth.

A site can only add to what it has declared: programs in the field send the old shape for a long time, and
logs hold it for longer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from services.chassis.errors import FieldProblem

EXPOSURE = "exposure"
"""The type that says a slate was seen. Its items default to the slate of its decision; it is never an outcome."""

RESERVED_TYPES = frozenset({"decision", "behavior", "outcome"})
RESERVED_PREFIX = "comity_"
RESERVED_PROPERTIES = frozenset(
    {"event_id", "type", "subject", "subject_id", "occurred_at", "item_ids", "decision_id", "placement_id"}
)


class PropertyKind(StrEnum):
    """What a property's value is."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    # Declared to a replica of a later release; this one takes what comes.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class EventProperty:
    """A property that events of a type may, or must, have."""

    name: str
    kind: PropertyKind
    required: bool = False


@dataclass(frozen=True, slots=True)
class EventSchema:
    """A type of behavior event as the site declares it.

    Args:
        item_required: an event names an item; an exposure may name the decision that chose its items instead.
        purposes: all of them must be allowed before an event of the type is stored.
        reward: what one event is worth when it is joined to a decision; 0: it is no outcome; below 0: worse than none.
        reward_property: the number among the properties that an event is worth instead, where it has it.
        anonymize_without_consent: without the purposes an event is stored without the person, else not at all.
    """

    type: str
    description: str
    purposes: tuple[str, ...]
    owner: str
    reason: str
    retention_days: int
    item_required: bool = False
    properties: tuple[EventProperty, ...] = ()
    reward: float = 0.0
    anonymize_without_consent: bool = False
    reward_property: str = ""

    @property
    def is_outcome(self) -> bool:
        """Whether events of the type can be worth anything."""
        return self.reward != 0 or self.reward_property != ""

    def reward_of(self, properties: Mapping[str, object]) -> float:
        """What an event with these properties is worth."""
        value = properties.get(self.reward_property, self.reward)
        return float(value) if isinstance(value, int | float) else self.reward


SchemaBook = Mapping[str, EventSchema]
"""Every declared type by its name."""


def problems_of(schemas: Sequence[EventSchema], declared: SchemaBook) -> tuple[FieldProblem, ...]:
    """What is wrong with a publication on top of what is declared already; empty when nothing is."""
    problems: list[FieldProblem] = []
    seen: set[str] = set()
    for place, schema in enumerate(schemas):
        field = f"schemas[{place}]"
        if schema.type in seen:
            problems.append(FieldProblem(f"{field}.type", f"{schema.type} is declared twice; keep one"))
        seen.add(schema.type)
        problems.extend(_own_problems(field, schema))
        earlier = declared.get(schema.type)
        if earlier is not None:
            problems.extend(_change_problems(field, schema, earlier))
    return tuple(problems)


def _own_problems(field: str, schema: EventSchema) -> list[FieldProblem]:
    problems: list[FieldProblem] = []
    if schema.type in RESERVED_TYPES or schema.type.startswith(RESERVED_PREFIX):
        problems.append(FieldProblem(f"{field}.type", f"{schema.type} is reserved; choose another name"))
    if schema.type == EXPOSURE and schema.is_outcome:
        problems.append(FieldProblem(f"{field}.reward", "being shown is no outcome: an exposure's reward is 0"))
    kinds = {entry.name: entry.kind for entry in schema.properties}
    if schema.reward_property and kinds.get(schema.reward_property) is not PropertyKind.NUMBER:
        problems.append(
            FieldProblem(
                f"{field}.reward_property",
                f"{schema.reward_property} is no declared property of kind number; declare it",
            )
        )
    if len(set(schema.purposes)) != len(schema.purposes):
        problems.append(FieldProblem(f"{field}.purposes", "a purpose is named twice; keep one"))
    names = [entry.name for entry in schema.properties]
    for place, name in enumerate(names):
        if name in RESERVED_PROPERTIES:
            problems.append(
                FieldProblem(
                    f"{field}.properties[{place}].name", f"{name} is a field of every event; choose another name"
                )
            )
        if name in names[:place]:
            problems.append(FieldProblem(f"{field}.properties[{place}].name", f"{name} is declared twice; keep one"))
    return problems


def _change_problems(field: str, schema: EventSchema, earlier: EventSchema) -> list[FieldProblem]:
    now = {entry.name: entry for entry in schema.properties}
    before = {entry.name: entry for entry in earlier.properties}
    problems = [
        FieldProblem(f"{field}.properties", f"{name} was declared before and is still being sent; keep it")
        for name in before.keys() - now.keys()
    ]
    for name, entry in now.items():
        was = before.get(name)
        if was is not None and was.kind is not entry.kind:
            problems.append(
                FieldProblem(
                    f"{field}.properties", f"{name} is a {was.kind.value}; declare the new kind under a new name"
                )
            )
        if entry.required and (was is None or not was.required):
            problems.append(
                FieldProblem(
                    f"{field}.properties", f"{name} cannot become required: senders of {schema.type} may omit it"
                )
            )
    if schema.item_required and not earlier.item_required:
        problems.append(
            FieldProblem(f"{field}.item_required", f"cannot become true: senders of {schema.type} may omit items")
        )
    return sorted(problems, key=lambda problem: problem.problem)


def with_published(declared: SchemaBook, schemas: Sequence[EventSchema]) -> SchemaBook:
    """The book after a publication: types it names are replaced, the others stay."""
    return {**declared, **{schema.type: schema for schema in schemas}}


def canonical(book: SchemaBook) -> bytes:
    """The same bytes for the same declarations, in whatever order they came; their hash is the version."""
    rows = [asdict(book[name]) for name in sorted(book)]
    for row in rows:
        row["properties"] = sorted(row["properties"], key=lambda entry: str(entry["name"]))
        row["purposes"] = sorted(row["purposes"])
        # Only where declared: the version of a site that does not declare it stays what it was.
        if not row["anonymize_without_consent"]:
            del row["anonymize_without_consent"]
        if not row["reward_property"]:
            del row["reward_property"]
    return json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()
