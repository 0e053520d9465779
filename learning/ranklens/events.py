"""The RankLens event files: read, ordered by time, translated into items.

Source: metarank/ranklens (CC BY-SA 4.0): films from MovieLens and TMDB, choices of people on Toloka.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from comity.decision.v1.site_pb2 import Categories, Item

from learning.errors import LearningError

# What an item may hold (site.proto); films with longer lists lose their end.
VALUES_MAX = 64
TEXT_MAX = 64
TITLE_MAX = 256


@dataclass(frozen=True, slots=True)
class Film:
    """Metadata of a film became known."""

    at_ms: int
    item: Item


@dataclass(frozen=True, slots=True)
class Ranking:
    """Films were shown to a person, in this order."""

    at_ms: int
    ranking_id: str
    user: str
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Click:
    """A person said of a film in a ranking that they like it."""

    at_ms: int
    click_id: str
    ranking_id: str
    user: str
    item_id: str


Event = Film | Ranking | Click


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything of one point in time; nothing in it is visible to anything else in it."""

    at_ms: int
    films: tuple[Film, ...]
    rankings: tuple[Ranking, ...]
    clicks: tuple[Click, ...]


class RankLensEvents:
    """The events of some files, in order of time and place in the files."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = sorted(events, key=lambda event: event.at_ms)
        self.rankings = [event for event in self._events if isinstance(event, Ranking)]
        self.clicks = [event for event in self._events if isinstance(event, Click)]
        self.users = list(dict.fromkeys(event.user for event in self._events if not isinstance(event, Film)))
        self._liked: dict[str, dict[str, float]] = {}
        for click in self.clicks:
            self._liked.setdefault(click.ranking_id, {})[click.item_id] = 1.0

    def __len__(self) -> int:
        return len(self._events)

    def liked_in(self, ranking: Ranking) -> Mapping[str, float]:
        """Relevance 1 of each film of the ranking that was clicked; empty where none was."""
        liked = self._liked.get(ranking.ranking_id, {})
        return {item_id: liked[item_id] for item_id in ranking.item_ids if item_id in liked}

    def moments(self) -> Iterator[Moment]:
        """The events by point in time."""
        for at_ms, group in groupby(self._events, key=lambda event: event.at_ms):
            events = list(group)
            yield Moment(
                at_ms=at_ms,
                films=tuple(event for event in events if isinstance(event, Film)),
                rankings=tuple(event for event in events if isinstance(event, Ranking)),
                clicks=tuple(event for event in events if isinstance(event, Click)),
            )

    def answered_by(self, train_before_ms: int) -> int:
        """The time of the last click on a ranking before then: when all that can be learned from is known."""
        trained_on = {ranking.ranking_id for ranking in self.rankings if ranking.at_ms < train_before_ms}
        return max(
            (click.at_ms for click in self.clicks if click.ranking_id in trained_on), default=train_before_ms - 1
        )


def read_events(paths: Sequence[Path]) -> RankLensEvents:
    """The events of JSON-lines files, gzipped or not.

    Raises:
        LearningError: a line is no RankLens event, with its file and number; or a file cannot be read.
    """
    return RankLensEvents(event for path in paths for event in _read(path))


def _read(path: Path) -> Iterator[Event]:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parsed(line, f"{path}:{number}")
    except OSError as error:
        raise LearningError(f"{path}: cannot be read ({error.strerror or 'not a gzip file'})") from error


def _parsed(line: str, where: str) -> Event:
    try:
        return event_from(json.loads(line))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LearningError(f"{where}: not an event of RankLens") from error


def event_from(record: Mapping[str, Any]) -> Event:
    """The event that a line is.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    at_ms = int(record["timestamp"])
    match record["event"]:
        case "item":
            return Film(at_ms, item_from(record["item"], record["fields"]))
        case "ranking":
            return Ranking(at_ms, record["id"], record["user"], tuple(entry["id"] for entry in record["items"]))
        case "interaction":
            return Click(at_ms, record["id"], record["ranking"], record["user"], record["item"])
        case other:
            raise ValueError(f"unknown event {other}")


def item_from(item_id: str, fields: Sequence[Mapping[str, Any]]) -> Item:
    """The film as an item: numbers as numbers, texts and lists of texts as categories."""
    item = Item(id=item_id)
    for entry in fields:
        name, value = entry["name"], entry["value"]
        if name == "title":
            item.title = value[:TITLE_MAX]
        elif isinstance(value, int | float):
            item.numbers[name] = value
        else:
            texts = [value] if isinstance(value, str) else value
            kept = list(dict.fromkeys(text[:TEXT_MAX] for text in texts if text))[:VALUES_MAX]
            item.categories[name].CopyFrom(Categories(values=kept))
    return item
