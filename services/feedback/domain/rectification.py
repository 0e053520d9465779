"""Putting recorded behavior right: which property of which type may get which value, and the behavior with it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.chassis.errors import FieldProblem
from services.feedback.domain.behavior import Behavior, PropertyValue, digest_of, unknown_type, value_problem
from services.feedback.domain.schemas import SchemaBook


@dataclass(frozen=True, slots=True)
class Rectification:
    """What is to be put right.

    Args:
        value: None where none was sent.
        event_id: only this event; empty: every one of the type that has the property.
    """

    request_id: str
    member_ids: tuple[str, ...]
    type: str
    property_name: str
    value: PropertyValue | None
    event_id: str = ""

    @property
    def digest(self) -> bytes:
        """The same for the same command."""
        parts: Sequence[object] = (
            *sorted(set(self.member_ids)), self.type, self.property_name, type(self.value), self.value, self.event_id,
        )  # fmt: skip
        return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def problem_of(asked: Rectification, book: SchemaBook) -> FieldProblem | None:
    """Why it cannot be done, whatever is recorded; None when it can."""
    schema = book.get(asked.type)
    if schema is None:
        return FieldProblem("type", unknown_type(book))
    entry = next((entry for entry in schema.properties if entry.name == asked.property_name), None)
    if entry is None:
        declared = ", ".join(entry.name for entry in schema.properties) or "none"
        return FieldProblem("property", f"{asked.type} does not declare it; it declares {declared}")
    if asked.value is None:
        return FieldProblem("value", f"is missing; give the {entry.kind.value} that is right")
    problem = value_problem(entry, asked.value)
    return None if problem is None else FieldProblem("value", problem.problem)


def put_right(behavior: Behavior, asked: Rectification) -> Behavior | None:
    """The behavior as it should have been; None where nothing is to be changed.

    An event that is named by its id gets the property also where it lacked it: incomplete is wrong, too.
    """
    if behavior.type != asked.type or asked.value is None:
        return None
    held = behavior.properties.get(asked.property_name)
    if held is None and not asked.event_id:
        return None
    if type(held) is type(asked.value) and held == asked.value:
        return None
    # What its sender said stays known: sent again, it is the same event.
    said = behavior.digest or digest_of(behavior.type, behavior.item_ids, behavior.properties, behavior.decision_id)
    return replace(behavior, properties={**behavior.properties, asked.property_name: asked.value}, digest=said)
