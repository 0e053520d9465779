"""Files → Bundle, with every problem of their form: syntax, unknown keys, wrong types, limits."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import yaml
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import never_list_pb2 as never_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import feature_set_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf import json_format
from google.protobuf.message import Message

from cli.bundle.bundle import Bundle, Declared
from cli.bundle.document import Place, read_document
from cli.bundle.problem import Problem
from cli.bundle.schema import Reader
from services.chassis.limits import problems_of

M = TypeVar("M", bound=Message)

FILES = (
    "site.yaml",
    "purposes.yaml",
    "notices.yaml",
    "jurisdictions.yaml",
    "features.yaml",
    "placements.yaml",
    "policies.yaml",
    "items.yaml",
    "never.yaml",
)
EVENTS_FOLDER = "events"
# A site may have none of these, and its file says so: `[]`.
_MAY_BE_NONE = ("features.yaml", "placements.yaml", "policies.yaml")
# A feed line that is longer is no item; it bounds what one line can make us hold.
FEED_LINE_BYTES_MAX = 65_536
FEED_PROBLEMS_MAX = 20
# The head of a site holds these; the rest of the message comes from other files.
_HEAD_KEYS = ("name", "holdout_share", "placeholders", "controller")
# Which key an entry is known by, and which names can be shown as they are.
_NAMING_KEYS = ("id", "name", "type", "version")
_PRINTABLE = re.compile(r"[\w.-]{1,64}")
_ENTRY = re.compile(r"\[(\d+)\]")
# What every use of data must say for itself; the limits know only that it must be said.
_REMEDIES = {
    "owner": "name who answers for it",
    "reason": "say why it is wanted at all",
    "retention_days": "say after how many days it is deleted",
    "approver": "name the person who decided",
}


class Loader:
    """Reads one bundle folder and keeps what is wrong with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Of each file with a list, what its entries are called.
        self._names: dict[str, list[str]] = {}
        self.problems: list[Problem] = []
        # Whether every file that is there could be read: else what refers to it would seem wrong.
        self.has_read_all = True

    def load(self, feed: Path | None) -> Bundle:
        """The bundle, as far as it could be read; look at `problems` before using it."""
        self._refuse_unknown_files()
        items_given = feed is not None or self._has("items.yaml")
        items = self._list("items.yaml", site_pb.Item, required=False)
        return Bundle(
            folder=self._folder,
            head=self._head(),
            purposes=self._list("purposes.yaml", consent_pb.Purpose),
            events=self._events(),
            features=self._list("features.yaml", features_pb.Feature),
            placements=self._list("placements.yaml", site_pb.Placement),
            policies=self._list("policies.yaml", site_pb.Policy),
            notices=self._list("notices.yaml", consent_pb.Notice, required=False),
            jurisdictions=self._list("jurisdictions.yaml", consent_pb.Jurisdiction, required=False),
            never=self._never(),
            items=items + (tuple(self._feed(feed)) if feed is not None else ()),
            items_given=items_given,
        )

    def named(self, problem: Problem) -> Problem:
        """The problem with the name of the entry that it is about."""
        place, names = _ENTRY.match(problem.path), self._names.get(problem.file, [])
        number = int(place[1]) if place is not None else len(names)
        return replace(problem, name=names[number]) if number < len(names) else problem

    def _head(self) -> Declared[site_pb.Site]:
        found = self._list("site.yaml", site_pb.Site, skip=("placements", "policies"))
        declared = self._only(found, "write name, holdout_share, placeholders and controller once")
        if declared is None:
            return Declared(site_pb.Site(), "site.yaml", "")
        for descriptor, _ in declared.message.ListFields():
            if descriptor.name not in _HEAD_KEYS:
                remedy = f"move it to {descriptor.name}.yaml" if descriptor.is_repeated else "remove it"
                self.problems.append(declared.problem(f".{descriptor.name}", "does not belong here", remedy))
        return declared

    def _never(self) -> Declared[never_pb.NeverList]:
        """What never.yaml holds: one NeverList, not a list of them."""
        found = self._list("never.yaml", never_pb.NeverList, required=False)
        only = self._only(found, "write `rules:` and `allow:` once")
        return only or Declared(never_pb.NeverList(), "never.yaml", "")

    def _only(self, found: tuple[Declared[M], ...], remedy: str) -> Declared[M] | None:
        """What a file holds one of."""
        self.problems += [more.problem("", "is a second one", remedy) for more in found[1:]]
        return found[0] if found else None

    def _events(self) -> tuple[Declared[feedback_pb.EventSchema], ...]:
        files = sorted((self._folder / EVENTS_FOLDER).glob("*.yaml"))
        for path in sorted((self._folder / EVENTS_FOLDER).glob("*.yml")):
            self._lack(f"{EVENTS_FOLDER}/{path.name}", "is no file of a bundle", "rename it to end with .yaml")
        if not files:
            self._lack(EVENTS_FOLDER, "holds no *.yaml", "declare at least one type of event in it")
        return tuple(
            event for file in files for event in self._list(f"{EVENTS_FOLDER}/{file.name}", feedback_pb.EventSchema)
        )

    def _list(
        self, file: str, kind: type[M], *, required: bool = True, skip: tuple[str, ...] = ()
    ) -> tuple[Declared[M], ...]:
        """Every entry of a file that holds a list, or the one entry of a file that holds one (site, events)."""
        if not self._has(file):
            if required:
                self._lack(file, "is missing", f"write it: it holds {kind.DESCRIPTOR.name}")
            return ()
        document, problems = read_document(self._folder / file, file=file)
        self.problems += problems
        is_empty = document.root is None or (required and file not in _MAY_BE_NONE and not document.root.value)
        self.has_read_all = self.has_read_all and not is_empty
        if document.root is None or is_empty:
            if not problems:
                self._lack(file, "is empty", f"write {kind.DESCRIPTOR.name} into it")
            return ()
        reader = Reader(document)
        if isinstance(document.root, yaml.SequenceNode):
            nodes = [(f"[{i}]", node) for i, node in enumerate(document.root.value)]
            self._names[file] = [_name_of(node) for _, node in nodes]
        else:
            nodes = [("", document.root)]
        read = [(path, reader.message(node, kind, path)) for path, node in nodes]
        self.problems += reader.problems
        found = tuple(Declared(message, file, path, document.places) for path, message in read if message is not None)
        for declared in found:
            self._check_limits(declared, skip=skip)
        return found

    def _feed(self, feed: Path) -> Iterator[Declared[site_pb.Item]]:
        """Items of a JSON-lines feed: one protobuf JSON Item a line."""
        refused = 0
        with feed.open("rb") as lines:
            for number, line in enumerate(_bounded_lines(lines), start=1):
                if not line.strip():
                    continue
                try:
                    declared = Declared(_item_of(line), feed.name, "", {"": Place(number, 0)})
                except (ValueError, json_format.ParseError) as error:
                    what = f"is no item: {str(error).splitlines()[0]}"
                    self.problems.append(Problem(feed.name, number, 0, "", what, "write one JSON Item a line"))
                    refused += 1
                    if refused == FEED_PROBLEMS_MAX:
                        return
                else:
                    self._check_limits(declared)
                    yield declared

    def _check_limits(self, declared: Declared[M], *, skip: tuple[str, ...] = ()) -> None:
        for found in problems_of(declared.message):
            if found.field not in skip:
                remedy = _REMEDIES.get(found.field.rpartition(".")[2], "mend the value")
                self.problems.append(declared.problem(f".{found.field}", found.problem, remedy))

    def _refuse_unknown_files(self) -> None:
        """A file whose name is mistyped would be left out without a word."""
        for path in sorted(self._folder.glob("*.y*ml")):
            if path.name not in FILES:
                self._lack(
                    path.name, "is no file of a bundle", f"known are {', '.join(FILES)} and {EVENTS_FOLDER}/*.yaml"
                )

    def _has(self, file: str) -> bool:
        return os.path.lexists(self._folder / file)

    def _lack(self, file: str, problem: str, remedy: str) -> None:
        self.has_read_all = False
        self.problems.append(Problem(file, 0, 0, "", problem, remedy))


def _bounded_lines(lines: BinaryIO) -> Iterator[bytes]:
    """Lines of a feed; of one that is too long only so much that this can be seen."""
    while line := lines.readline(FEED_LINE_BYTES_MAX + 1):
        yield line
        while not line.endswith(b"\n") and len(line) > FEED_LINE_BYTES_MAX:
            line = lines.readline(FEED_LINE_BYTES_MAX + 1)


def _name_of(node: yaml.Node) -> str:
    """What people call an entry; empty where it says nothing that could be printed."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    given = {key.value: value.value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    name = next((given[key] for key in _NAMING_KEYS if key in given), "")
    return name if isinstance(name, str) and _PRINTABLE.fullmatch(name) else ""


def _item_of(line: bytes) -> site_pb.Item:
    """The item that a line of a feed holds.

    Raises:
        ValueError, json_format.ParseError: it holds none.
    """
    if len(line) > FEED_LINE_BYTES_MAX:
        raise ValueError(f"the line has more than {FEED_LINE_BYTES_MAX:,} bytes")
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    return json_format.ParseDict(data, site_pb.Item())
