"""YAML nodes → protobuf JSON, strictly by the message's descriptor.

The protos are the one schema of a bundle. json_format.ParseDict stops at the first mistake and knows no
lines, so the walk over the descriptor is done here, every mistake is kept, and ParseDict only
builds the message from what the walk let through.
"""

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TypeAlias, TypeVar, cast

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from cli.bundle.document import DEPTH_MAX, Document, mark_place
from cli.bundle.problem import Problem

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
M = TypeVar("M", bound=Message)

TIMESTAMP = "google.protobuf.Timestamp"

_BOUNDS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_READ_AS = {"int": "a number", "float": "a number", "bool": "a boolean", "timestamp": "a date", "null": "nothing"}
# Aliases repeat what they name: a few kB could stand for billions of values. So many come on top of what is written.
ALIASED_MAX = 100_000
# Of one file; who mends a hundred mistakes checks again.
PROBLEMS_MAX = 100
_COMMA = re.compile(r"[+-]?\d+,\d+")
_DIGITS = re.compile(r"[+-]?\d{1,20}")


class Reader:
    """Walks the nodes of one document along descriptors and keeps every problem it meets."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._left = ALIASED_MAX + (_nodes_count(document.root) if document.root is not None else 0)
        self._refused = 0
        self.problems: list[Problem] = []

    def message(self, node: yaml.Node, kind: type[M], path: str) -> M | None:
        """The message that the node holds, or None when it has problems."""
        before = self._refused
        data = self._fields(node, cast(Descriptor, kind.DESCRIPTOR), path, 0)
        return json_format.ParseDict(data, kind()) if self._refused == before else None

    def refuse(self, node: yaml.Node, path: str, problem: str, remedy: str) -> None:
        """Keep a problem of the node, as long as there are not too many."""
        self._refused += 1
        if len(self.problems) >= PROBLEMS_MAX:
            return
        self._document.places.setdefault(path, mark_place(node))
        self.problems.append(self._document.problem(path, problem, remedy))

    def _fields(self, node: yaml.Node, descriptor: Descriptor, path: str, depth: int) -> dict[str, Json]:
        if not self._may_read(node, path):
            return {}
        self._document.places[path] = mark_place(node)
        if depth > DEPTH_MAX:
            self.refuse(node, path, f"nests more than {DEPTH_MAX} deep", "write it out without aliases")
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, path, f"must be a mapping ({descriptor.name})", "write `key: value` lines below it")
            return {}
        data: dict[str, Json] = {}
        for key_node, value_node in self._pairs(node, path):
            field = self._field_of(key_node, descriptor, path)
            if field is not None:
                here = f"{path}.{field.name}"
                self._document.places[here] = mark_place(key_node)
                data[field.name] = self._value(value_node, field, here, depth)
        self._check_oneofs(node, descriptor, data, path)
        return data

    def _field_of(self, key: yaml.Node, descriptor: Descriptor, path: str) -> FieldDescriptor | None:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        field = descriptor.fields_by_name.get(name)
        if field is None:
            known = sorted(descriptor.fields_by_name)
            close = get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
            self.refuse(key, f"{path}.{name}", "is no key that is known here", remedy)
        return field

    def _may_read(self, node: yaml.Node, path: str) -> bool:
        """Whether one more value may be read, written out or by an alias; said once where it may not."""
        self._left -= 1
        if self._left == -1:
            more = f"its aliases stand for more than {ALIASED_MAX:,} values"
            self.refuse(node, path, more, "write it out without aliases")
        self._refused += self._left < 0
        return self._left >= 0

    def _pairs(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Keys and values; `{price: 49,90}` is a price of 49 and a key 90, and nobody means that."""
        number = ""
        for key, value in node.value:
            if number and _is_rest(key) and _is_nothing(value):
                self.refuse(key, path, *_comma(f"{number},{key.value}"))
            elif _tag(key) == "merge":
                self.refuse(key, path, "merges another mapping (<<), which a bundle does not", "write the keys out")
            else:
                yield key, value
            is_number = isinstance(value, yaml.ScalarNode) and value.style is None and _DIGITS.fullmatch(value.value)
            number = str(value.value) if is_number else ""

    def _check_oneofs(self, node: yaml.Node, descriptor: Descriptor, data: dict[str, Json], path: str) -> None:
        for oneof in descriptor.oneofs:
            names = [field.name for field in oneof.fields]
            given = [name for name in names if name in data]
            if len(given) > 1:
                self.refuse(node, path, f"holds {' and '.join(given)}", "keep one of them")
            elif not given:
                self.refuse(node, path, f"has no {oneof.name}", f"give it one of {', '.join(names)}")

    def _value(self, node: yaml.Node, field: FieldDescriptor, path: str, depth: int) -> Json:
        if isinstance(node, yaml.ScalarNode) and _tag(node) == "null":
            self.refuse(node, path, "has no value", "give it one, or remove the key")
            return None
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return self._map(node, field, path, depth)
        if field.is_repeated:
            return self._list(node, field, path, depth)
        return self._single(node, field, path, depth)

    def _map(self, node: yaml.Node, field: FieldDescriptor, path: str, depth: int) -> Json:
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, path, "must be a mapping", "write `key: value` lines below it")
            return None
        assert field.message_type is not None
        value_field = field.message_type.fields_by_name["value"]
        data: dict[str, Json] = {}
        for key, value in self._pairs(node, path):
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            here = f'{path}["{name}"]'
            self._document.places[here] = mark_place(key)
            if _tag(key) != "str":
                self.refuse(key, here, f"is read by YAML as {_READ_AS.get(_tag(key), 'no text')}", "put it in quotes")
                continue
            data[name] = self._single(value, value_field, here, depth)
        return data

    def _list(self, node: yaml.Node, field: FieldDescriptor, path: str, depth: int) -> Json:
        if not isinstance(node, yaml.SequenceNode):
            self.refuse(node, path, "must be a list", "write `- entry` lines below it, or [a, b]")
            return None
        return [self._single(entry, field, f"{path}[{i}]", depth) for i, entry in enumerate(node.value)]

    def _single(self, node: yaml.Node, field: FieldDescriptor, path: str, depth: int) -> Json:
        if field.message_type is not None and field.message_type.full_name != TIMESTAMP:
            return self._fields(node, field.message_type, path, depth + 1)
        if not self._may_read(node, path):
            return None
        self._document.places[path] = self._document.places.get(path) or mark_place(node)
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, path, "must be a single value", f"write {_kind_name(field)}")
            return None
        if field.message_type is not None:
            return self._moment(node, path)
        readers = {
            FieldDescriptor.CPPTYPE_STRING: self._text,
            FieldDescriptor.CPPTYPE_BOOL: self._boolean,
            FieldDescriptor.CPPTYPE_DOUBLE: self._number,
            FieldDescriptor.CPPTYPE_FLOAT: self._number,
            FieldDescriptor.CPPTYPE_ENUM: self._enum,
        }
        return readers.get(field.cpp_type, self._whole)(node, field, path)

    def _text(self, node: yaml.ScalarNode, _field: FieldDescriptor, path: str) -> Json:
        if _tag(node) == "str":
            return str(node.value)
        self.refuse(node, path, f"is read by YAML as {_READ_AS.get(_tag(node), 'no text')}", "put it in quotes")
        return None

    def _moment(self, node: yaml.ScalarNode, path: str) -> Json:
        """A time, written plainly or in quotes; a date alone is its first moment, and what names no zone is UTC."""
        try:
            at = datetime.fromisoformat(str(node.value))
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            self.refuse(node, path, "must be a time", "write it like 2026-10-01 or 2026-10-01T12:00:00Z")
            return None

    def _boolean(self, node: yaml.ScalarNode, _field: FieldDescriptor, path: str) -> Json:
        if node.value in ("true", "false") and _tag(node) == "bool":
            return bool(node.value == "true")
        self.refuse(node, path, "must be a boolean", "write true or false")
        return None

    def _number(self, node: yaml.ScalarNode, _field: FieldDescriptor, path: str) -> Json:
        # YAML 1.1 reads 1e10 as text: what float() takes is a number here, unless it is quoted.
        if node.style is None:
            try:
                return _json_number(float(node.value.replace(".nan", "nan").replace(".inf", "inf")))
            except ValueError:
                pass
        if _COMMA.fullmatch(node.value):
            self.refuse(node, path, *_comma(node.value))
        else:
            self.refuse(node, path, "must be a number", "write one without quotes")
        return None

    def _whole(self, node: yaml.ScalarNode, field: FieldDescriptor, path: str) -> Json:
        low, high = _BOUNDS[field.cpp_type]
        if node.style is None and _DIGITS.fullmatch(node.value) and low <= int(node.value) <= high:
            return int(node.value)
        self.refuse(node, path, "must be a whole number", f"write one in [{low}, {high}] without quotes")
        return None

    def _enum(self, node: yaml.ScalarNode, field: FieldDescriptor, path: str) -> Json:
        enum = field.enum_type
        assert enum is not None
        names = [value.name for value in enum.values if value.number != 0]
        if node.value in names:
            return str(node.value)
        self.refuse(node, path, f"is no {enum.name}", f"write one of {', '.join(names)}")
        return None


def _nodes_count(root: yaml.Node) -> int:
    """How many nodes are written in the document, whatever aliases make of them."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        inner = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        fresh = [one for one in inner if id(one) not in seen]
        seen.update(map(id, fresh))
        waiting.extend(fresh)
    return len(seen)


def _is_rest(node: yaml.Node) -> bool:
    """Whether it may be what follows a decimal comma."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value.isdecimal()


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and not node.value


def _comma(number: str) -> tuple[str, str]:
    """Problem and remedy of a number that is written with a comma."""
    return "has a comma in its number", f"write {number.replace(',', '.')}, and no separator of thousands"


def _tag(node: yaml.Node) -> str:
    """Last part of the node's YAML tag: str, int, null, …"""
    return str(node.tag).rsplit(":", 1)[-1]


def _json_number(value: float) -> Json:
    """The number, or protobuf JSON's name for what JSON has none for (the limits refuse those, by name)."""
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _kind_name(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return "one name"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "text"
    return "true or false" if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else "a number"
