"""Enforces the limits that are declared on the protos (comity.common.v1.limits), in one place.

A message type is compiled once into a check that walks only what can be wrong; a path such as
`placements[2].candidate_ids` is put together only when something is. Beyond what a field declares, every field is
bounded: strings have at most 1,024 characters and none that is `UNPRINTABLE`, bytes at most 262,144, lists and
maps at most 64 entries, integers fit the columns they are kept in, floating point numbers are finite, enums known, and
times within what a datetime can hold. A string that is `prose` may hold anything but NUL, which Postgres cannot store.
A field that is `from_visitor` is left to its reader (chassis.visitors).
No problem repeats a value of the request: values may be personal, and problems travel into logs of callers.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from comity.common.v1 import options_pb2 as pb
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from services.chassis.errors import FieldProblem, Kind, ServiceError

# A caller mends a form, not a flood: what is beyond this is found by the next try.
PROBLEMS_MAX = 20
STRING_CHARACTERS_MAX = 1024
BYTES_MAX = 262_144
ITEMS_MAX = 64
# Control characters, line breaks, and what turns the direction of writing around: they forge lines of logs and
# terminals, and make two names look like one. What was stored before they were refused is still read.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# What Postgres' integer and bigint hold: the unsigned are kept in the same.
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**63 - 1),
}

# Years 1 to 9999, as datetime and google.protobuf.Timestamp have it.
_TIMESTAMP_S = (-62_135_596_800, 253_402_300_799)
_NUL = re.compile("\0")
_DECLARED_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")

# (where, what is wrong), innermost first; each level puts its own name in front.
_Found = list[tuple[str, str]]
# None, or what is wrong with the value.
_Check = Callable[[Any], _Found | None]

_compiled: dict[str, _Check | None] = {}


def problems_of(message: Message) -> tuple[FieldProblem, ...]:
    """What is wrong with the message, field by field, at most 20; empty when nothing is."""
    check = check_of(message.DESCRIPTOR)
    found = check(message) if check is not None else None
    return as_problems(found) if found else ()


def require_valid(message: Message) -> None:
    """Returns when the message keeps its limits.

    Raises:
        ServiceError: INVALID (INVALID_FIELD), with the fields that do not.
    """
    check = check_of(message.DESCRIPTOR)
    found = check(message) if check is not None else None
    if found:
        raise refusal(as_problems(found))


def refusal(problems: tuple[FieldProblem, ...]) -> ServiceError:
    """The error for these problems; its message names the first."""
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ServiceError(Kind.INVALID, "INVALID_FIELD", f"{first.field}: {first.problem}{more}", problems=problems)


def as_problems(found: _Found) -> tuple[FieldProblem, ...]:
    """What a check found, as the error carries it."""
    return tuple(FieldProblem(path.lstrip("."), problem) for path, problem in found[:PROBLEMS_MAX])


def check_of(descriptor: Any) -> _Check | None:
    """The compiled check of a message type; None when nothing in it can be wrong."""
    name = descriptor.full_name
    if name not in _compiled:
        # A type that contains itself finds this while it is being compiled, and looks itself up later.
        _compiled[name] = lambda message: _compiled_check(name, message)
        _compiled[name] = _compile_message(descriptor)
    return _compiled[name]


def _compiled_check(name: str, message: Message) -> _Found | None:
    check = _compiled[name]
    return check(message) if check is not None else None


def _compile_message(descriptor: Any) -> _Check | None:
    if descriptor.full_name == "google.protobuf.Timestamp":
        return _check_timestamp
    always: list[tuple[str, _Check]] = []
    when_set: list[tuple[str, _Check]] = []
    messages: list[tuple[str, _Check | None, bool]] = []
    for field in descriptor.fields:
        limits = field.GetOptions().Extensions[pb.limits]
        if field.message_type is not None and not field.is_repeated:
            nested = check_of(field.message_type)
            if nested is not None or limits.required:
                messages.append((field.name, nested, limits.required))
            continue
        check = _compile_value(field, limits)
        if check is not None:
            # A low bound above 0 refuses an unset number too.
            (always if limits.required or limits.gte > 0 else when_set).append((field.name, check))
    if not (always or when_set or messages):
        return None
    return _message_check(tuple(always), tuple(when_set), tuple(messages))


def _compile_value(field: FieldDescriptor, limits: pb.FieldLimits) -> _Check | None:
    if not field.is_repeated:
        return _compile_scalar(field, limits)
    return _compile_map(field, limits) if _is_map(field) else _compile_list(field, limits)


def _message_check(
    always: tuple[tuple[str, _Check], ...],
    when_set: tuple[tuple[str, _Check], ...],
    messages: tuple[tuple[str, _Check | None, bool], ...],
) -> _Check:
    """The check of a message from those of its fields: the required, the ones an empty value satisfies, the nested."""

    def check_message(message: Message) -> _Found | None:
        found: _Found | None = None
        for name, check in always:
            wrong = check(getattr(message, name))
            if wrong is not None:
                found = _add(found, f".{name}", wrong)
        for name, check in when_set:
            value = getattr(message, name)
            if value and (wrong := check(value)) is not None:
                found = _add(found, f".{name}", wrong)
        for name, nested, required in messages:
            if message.HasField(name):
                if nested is not None and (wrong := nested(getattr(message, name))) is not None:
                    found = _add(found, f".{name}", wrong)
            elif required:
                found = _add(found, f".{name}", [("", "is missing; set it")])
        return found

    return check_message


def _add(found: _Found | None, prefix: str, wrong: _Found) -> _Found:
    placed = [(prefix + path, problem) for path, problem in wrong]
    return placed if found is None else found + placed


def _compile_list(field: FieldDescriptor, limits: pb.FieldLimits) -> _Check:
    return _sized(limits, _compile_entries(field, limits))


def _sized(limits: pb.FieldLimits, entries: _Check | None) -> _Check:
    """The check of a list or map: how many, then what *entries* finds."""
    items_max, required = limits.items_max or ITEMS_MAX, limits.required

    def check_sized(values: Any) -> _Found | None:
        count = len(values)
        if count == 0:
            return [("", "is empty; give at least one")] if required else None
        if count > items_max:
            return [("", f"has {count} entries; at most {items_max:,} are allowed")]
        return entries(values) if entries is not None else None

    return check_sized


def _compile_entries(field: FieldDescriptor, limits: pb.FieldLimits) -> _Check | None:
    """The check of all entries of a list at once; None when none of them can be wrong here."""
    if limits.entries_apart:
        return None
    if field.message_type is not None:
        return _each(check_of(field.message_type))
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string_entries(field, limits)
    return _each(_compile_scalar(field, limits, entry=True))


def _each(check: _Check | None, place: str = "") -> _Check | None:
    """The check of every entry, named by its index or, where there is no order, by *place*."""
    if check is None:
        return None

    def check_each(values: Iterable[Any]) -> _Found | None:
        found: _Found | None = None
        for index, value in enumerate(values):
            wrong = check(value)
            if wrong is not None:
                found = _add(found, place or f"[{index}]", wrong)
                if len(found) >= PROBLEMS_MAX:
                    break
        return found

    return check_each


def _string_entries(field: FieldDescriptor, limits: pb.FieldLimits, place: str = "") -> _Check:
    """Checks many strings without a Python step for each: a Decide may carry a thousand candidates."""
    len_max = limits.len_max or STRING_CHARACTERS_MAX
    slowly = _each(_compile_scalar(field, limits, entry=True), place)
    assert slowly is not None
    if limits.pattern:
        return slowly

    def check_strings(values: Iterable[str]) -> _Found | None:
        strings = list(values)
        # Everything that is UNPRINTABLE is not printable, and little else.
        if max(map(len, strings)) <= len_max and "".join(strings).isprintable():
            return None
        return slowly(strings)

    return check_strings


def _compile_map(field: FieldDescriptor, limits: pb.FieldLimits) -> _Check:
    """The limits of a map: `items_max` for its size, `len_max` and `pattern` for its keys, the rest for its values."""
    assert field.message_type is not None
    key_field, value_field = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    of_value = pb.FieldLimits(finite=limits.finite, gte=limits.gte, lte=limits.lte)
    check_value = (
        check_of(value_field.message_type)
        if value_field.message_type is not None
        else _compile_scalar(value_field, of_value, entry=True)
    )
    check_keys = (
        _string_entries(key_field, limits, "[a key]") if key_field.type == FieldDescriptor.TYPE_STRING else None
    )

    def check_entries(values: Any) -> _Found | None:
        found = check_keys(values) if check_keys is not None else None
        if check_value is None or found is not None:
            return found
        for key, value in values.items():
            wrong = check_value(value)
            if wrong is not None:
                found = _add(found, f"[{_shown(key)}]", wrong)
        return found

    return _sized(limits, check_entries)


def _shown(key: object) -> str:
    """The key where it looks like a name that a bundle declares; a caller may have put a person's data there."""
    return str(key) if isinstance(key, str) and _DECLARED_NAME.fullmatch(key) else "…"


def _compile_scalar(field: FieldDescriptor, limits: pb.FieldLimits, *, entry: bool = False) -> _Check | None:
    """The check of one value; None when it cannot be wrong. An entry of a list is there, so it is never missing."""
    required = limits.required and not entry
    if field.type == FieldDescriptor.TYPE_STRING:
        if limits.from_visitor:
            return None
        # An entry of a list that has a pattern is there, so an empty one does not match.
        required = required or (entry and bool(limits.pattern))
        return _string_check(limits.len_max or STRING_CHARACTERS_MAX, limits.pattern, required, prose=limits.prose)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes_check(limits.len_max or BYTES_MAX, required)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return None
    if field.enum_type is not None:
        return _enum_check(field.enum_type, required)
    kept = _INTEGERS.get(field.type, (-math.inf, math.inf))
    bounds = (limits.gte, limits.lte) if limits.gte or limits.lte else kept
    return _number_check(*bounds, required=required)


def _string_check(len_max: int, pattern: str, required: bool, *, prose: bool) -> _Check:
    matches = re.compile(pattern).fullmatch if pattern else None
    refused = (_NUL if prose else UNPRINTABLE).search
    wrong = "a NUL character" if prose else "a control character, a line break or one that turns the writing around"

    def check_string(value: str) -> _Found | None:
        if not value:
            return [("", "is missing; set it")] if required else None
        if len(value) > len_max:
            return [("", f"has {len(value)} characters; at most {len_max:,} are allowed")]
        if refused(value) is not None:
            return [("", f"holds {wrong}; remove it")]
        if matches is not None and matches(value) is None:
            return [("", f"does not match {pattern}")]
        return None

    return check_string


def _bytes_check(len_max: int, required: bool) -> _Check:
    def check_bytes(value: bytes) -> _Found | None:
        if len(value) > len_max:
            return [("", f"has {len(value)} bytes; at most {len_max:,} are allowed")]
        return [("", "is missing; set it")] if required and not value else None

    return check_bytes


def _enum_check(enum: EnumDescriptor, required: bool) -> _Check:
    known = frozenset(enum.values_by_number)
    names = ", ".join(value.name for value in enum.values if value.number != 0)

    def check_enum(value: int) -> _Found | None:
        if value not in known:
            return [("", f"is not a value of {enum.name}; use one of {names}")]
        return [("", f"is missing; use one of {names}")] if required and value == 0 else None

    return check_enum


def _number_check(low: float, high: float, *, required: bool) -> _Check:
    assert low <= high, f"a bound from {low:g} to {high:g} allows nothing: declare both ends"

    def check_number(value: float) -> _Found | None:
        if isinstance(value, float) and not math.isfinite(value):
            return [("", "is not a finite number; NaN and infinity are refused")]
        if required and value == 0:
            return [("", "is missing; set it to a number other than 0")]
        if not low <= value <= high:
            return [("", f"is out of bounds; {_number(low)} to {_number(high)} is allowed")]
        return None

    return check_number


def _number(bound: float) -> str:
    """The bound as a person writes it."""
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:,g}"


def _check_timestamp(value: Any) -> _Found | None:
    if _TIMESTAMP_S[0] <= value.seconds <= _TIMESTAMP_S[1] and 0 <= value.nanos < 1_000_000_000:
        return None
    return [("", "is not a time between the years 1 and 9999")]


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
