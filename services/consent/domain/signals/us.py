"""A US section of a GPP string, read by its row of `us_layouts`.

Source: GPP Sections, "US-National" and "US-States"; "Section Information", Reusable Subsections (GPC).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.consent.domain.signals.bits import GPP_UNITS, BitReader, parts
from services.consent.domain.signals.errors import Code, ConsentStringError, Problem
from services.consent.domain.signals.us_layouts import (
    COVERED,
    SENSITIVE,
    SENSITIVE_SEGMENT_COUNT,
    VALUE_BITS,
    VERSION_BITS,
    Layout,
    Second,
    UsSpec,
)

GPC_SEGMENT = 1
_SECOND_MAX = 2

Value = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UsSection:
    """What a US section holds.

    Args:
        fields: of the core, by their names in the specification; a list where the layout has several values.
        gpc: Global Privacy Control; None where there is no such segment.
        deviation: set where the section is not what the specification says and IAB's libraries read it all the same:
            the fields are then what they read. It can object, and grants nothing.
    """

    version: int
    fields: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    gpc: bool | None = None
    deviation: Problem | None = None


def read_us(spec: UsSpec, text: str, offset: int) -> UsSection:
    """What a US section holds.

    Raises:
        ConsentStringError: it cannot be read, or holds what is undefined.
    """
    core, *rest = parts(text, ".", offset)
    if len(rest) > (spec.second is not Second.NONE):
        place = rest[-1][1]
        raise ConsentStringError(Problem(Code.SEGMENT_UNKNOWN, place, f"section {spec.name} has too many segments"))
    version, fields, deviation = _read_core(spec, BitReader(*core))
    gpc = None
    for part in rest:
        if spec.second is Second.GPC:
            gpc = _read_gpc(BitReader(*part))
        else:
            fields[SENSITIVE] = _read_sensitive(BitReader(*part))
    return UsSection(version, MappingProxyType(fields), gpc, deviation)


def _read_core(spec: UsSpec, reader: BitReader) -> tuple[int, dict[str, Value], Problem | None]:
    version = reader.integer(VERSION_BITS)
    if version not in spec.versions:
        raise reader.error(Code.VERSION_UNSUPPORTED, f"section {spec.name} has a version that does not exist")
    layout = spec.versions[version]
    other = _other_layout(spec, layout, reader)
    message = f"section {spec.name} has the fields of another version than it says"
    deviation = reader.problem(Code.OTHER_LAYOUT, message)
    fields = _read_fields(other or layout, reader)
    surplus = reader.surplus(GPP_UNITS)
    if other is not None:
        if surplus is not None:
            raise ConsentStringError(surplus)
        return version, _fitted(fields, layout), deviation
    if surplus is None:
        _check_values(fields, reader)
    return version, fields, surplus


def _other_layout(spec: UsSpec, layout: Layout, reader: BitReader) -> Layout | None:
    """The layout of another version, where the section has its length: encoders raised one before the other."""
    if layout.has_length(reader.length):
        return None
    return next((other for other in spec.versions.values() if other.has_length(reader.length)), None)


def _read_fields(layout: Layout, reader: BitReader) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    for one in layout.fields:
        if one.count:
            bits = reader.text(VALUE_BITS * one.count)
            fields[one.name] = tuple([int(bits[at : at + VALUE_BITS], 2) for at in range(0, len(bits), VALUE_BITS)])
        else:
            fields[one.name] = reader.integer(VALUE_BITS)
    return fields


def _fitted(fields: dict[str, Value], layout: Layout) -> dict[str, Value]:
    """The fields with as many values as the layout has, missing ones 0: what IAB's libraries make of it."""

    def fit(value: Value, count: int) -> Value:
        return value if isinstance(value, int) else (*value, *[0] * count)[:count]

    return {one.name: fit(fields[one.name], one.count) for one in layout.fields}


def _check_values(fields: dict[str, Value], reader: BitReader) -> None:
    for name, value in fields.items():
        values = (value,) if isinstance(value, int) else value
        if max(values) > _SECOND_MAX or (name == COVERED and value == 0):
            raise reader.error(Code.VALUE_UNDEFINED, f"{name} has a value that is undefined")


def _read_gpc(reader: BitReader) -> bool:
    if reader.integer(VALUE_BITS) != GPC_SEGMENT:
        raise reader.error(Code.SEGMENT_UNKNOWN, "holds a segment of a type that does not exist")
    gpc = reader.boolean()
    reader.finish(GPP_UNITS)
    return gpc


def _read_sensitive(reader: BitReader) -> tuple[int, ...]:
    values = tuple([reader.integer(VALUE_BITS) for _ in range(SENSITIVE_SEGMENT_COUNT)])
    reader.finish(GPP_UNITS)
    _check_values({SENSITIVE: values}, reader)
    return values
