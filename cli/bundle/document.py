"""YAML text → nodes that know their lines, and places: where each field of a file stands.

Nodes, not Python values: what a scalar means depends on the field it is for (schema.py), and only
nodes know where they stand.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cli.bundle.problem import Problem

# Some tens of thousands of items; reading as much takes a minute.
FILE_BYTES_MAX = 4 * 2**20
# A bundle nests five deep at most.
DEPTH_MAX = 16


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


class _Loader(yaml.SafeLoader):
    """Composes nodes as far down as anything in a bundle nests."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """See yaml.composer; by nature it calls itself for what is nested."""
        self.depth += 1
        try:
            if self.depth > DEPTH_MAX:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(problem=f"it nests more than {DEPTH_MAX} deep", problem_mark=mark)
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self.depth -= 1


def read_document(path: Path, *, file: str) -> tuple[Document, list[Problem]]:
    """The file's nodes, and what keeps it from being YAML with one meaning."""
    try:
        text = _text_of(path)
        root = yaml.compose(text, Loader=_Loader)
    except _UnreadError as error:
        return Document(file, None), [Problem(file, 0, 0, "", *error.args)]
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


class _UnreadError(Exception):
    """Why a file is not read: problem and remedy."""


def _text_of(path: Path) -> str:
    """The text of a regular file; what is none (a pipe, a device, a folder) is not even opened.

    Raises:
        _UnreadError, UnicodeDecodeError.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _UnreadError("is no regular file", "put a file with this name in its place")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise _UnreadError(f"cannot be read: {why}", "mend that, or put a file in its place") from error
    if len(data) > FILE_BYTES_MAX:
        size = f"has more than {FILE_BYTES_MAX // 2**20} MiB"
        raise _UnreadError(size, "split it; many items come as JSON lines instead (--items FEED)")
    return data.decode()


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
