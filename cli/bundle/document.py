"""YAML text → nodes that know their lines, and places: where each field of a file stands.

Nodes, not Python values: what a scalar means depends on the field it is for (schema.py), and only
nodes know where they stand.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cli.bundle.problem import Problem


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field stands; both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """One file of a bundle while it is read.

    Args:
        file: path inside the bundle.
        root: its YAML node; None when it holds nothing, or is not YAML.
        places: field path → where it stands; filled as the schema walks the nodes.
    """

    file: str
    root: yaml.Node | None
    places: dict[str, Place] = field(default_factory=dict)

    def problem(self, path: str, problem: str, remedy: str) -> Problem:
        """A problem of the field at *path*, with the line it stands in."""
        place = place_of(self.places, path)
        return Problem(self.file, place.line, place.column, path, problem, remedy)


def read_document(path: Path, *, file: str) -> tuple[Document, list[Problem]]:
    """The file's nodes, and what keeps it from being YAML with one meaning."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        what = error.problem or "cannot be read"
        problem = Problem(file, line, column, "", f"is not YAML: {what}", "mend the syntax")
        return Document(file, None), [problem]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = Problem(file, 0, 0, "", f"is not YAML: {str(error).splitlines()[0]}", "save it as UTF-8 text")
        return Document(file, None), [problem]
    document = Document(file, root)
    return document, [] if root is None else list(_doubled_keys(root, file))


def mark_place(node: yaml.Node) -> Place:
    """Where a node begins."""
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def place_of(places: Mapping[str, Place], path: str) -> Place:
    """Where the field stands, or else the closest thing around it (a missing field has no place of its own)."""
    while path not in places:
        cut = max(path.rfind("."), path.rfind("["))
        if cut < 0:
            return Place(0, 0)
        path = path[:cut]
    return places[path]


def _doubled_keys(root: yaml.Node, file: str) -> Iterator[Problem]:
    """Keys that a mapping has twice: YAML would keep the last one without a word."""
    waiting: list[yaml.Node] = [root]
    seen_nodes: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen_nodes:  # an alias: looked at where it is anchored
            continue
        seen_nodes.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting.extend(value for _, value in node.value)
            keys: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    place = mark_place(key)
                    yield Problem(file, place.line, place.column, key.value, "stands here twice", "keep one of them")
                keys.add(getattr(key, "value", "") if isinstance(key, yaml.ScalarNode) else "")
