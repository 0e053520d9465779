"""The RankLens files, and the simple rankers over them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from learning.errors import LearningError
from learning.ranklens import Click, Film, Ranking, RankLensEvents, read_events
from learning.ranklens.baselines import baselines
from learning.ranklens.events import Event, item_from


def film(item_id: str, at_ms: int, popularity: float) -> Film:
    return Film(at_ms, item_from(item_id, [{"name": "popularity", "value": popularity}]))


def ranking(name: str, at_ms: int, *items: str) -> Ranking:
    return Ranking(at_ms, name, "ann", items)


def click(name: str, at_ms: int, item_id: str) -> Click:
    return Click(at_ms, f"{name}-{item_id}", name, "ann", item_id)


LINES: list[dict[str, Any]] = [
    {
        "event": "item",
        "id": "i",
        "item": "3",
        "timestamp": "1000",
        "fields": [
            {"name": "title", "value": "A Film"},
            {"name": "popularity", "value": 9.5},
            {"name": "genres", "value": ["comedy", "comedy", ""]},
            {"name": "director", "value": "x" * 100},
        ],
    },
    {
        "event": "ranking",
        "id": "r",
        "timestamp": "3000",
        "user": "u",
        "session": "u",
        "fields": [],
        "items": [{"id": "3", "relevancy": 0.0}, {"id": "4", "relevancy": 0.0}],
    },
    {
        "event": "interaction",
        "id": "c",
        "item": "4",
        "timestamp": "8000",
        "ranking": "r",
        "user": "u",
        "type": "click",
        "fields": [],
    },
]


def test_files_are_read_gzipped_or_not(tmp_path: Path) -> None:
    """Several files are one sequence, by time; a film becomes an item within an item's limits."""
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_text("\n".join(json.dumps(line) for line in LINES[1:]) + "\n\n")
    packed.write_bytes(gzip.compress(json.dumps(LINES[0]).encode()))
    events = read_events([plain, packed])
    moments = list(events.moments())
    assert [moment.at_ms for moment in moments] == [1000, 3000, 8000]
    item = moments[0].films[0].item
    assert (item.title, dict(item.numbers), list(item.categories["genres"].values)) == (
        "A Film",
        {"popularity": 9.5},
        ["comedy"],
    )
    assert len(item.categories["director"].values[0]) == 64
    assert events.liked_in(events.rankings[0]) == {"4": 1.0}
    assert events.users == ["u"]


@pytest.mark.parametrize("line", ["no json", "[]", '{"event": "ranking"}', '{"event": "other", "timestamp": "1"}'])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    """With file and number."""
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(LINES[0])}\n{line}\n")
    with pytest.raises(LearningError, match=r"a\.jsonl:2"):
        read_events([path])


def test_training_waits_for_the_last_answer() -> None:
    """All clicks on rankings before the boundary are known before training, however late they came."""
    events = RankLensEvents(
        [ranking("a", 1000, "1"), ranking("b", 2000, "1"), click("a", 6000, "1"), click("b", 7000, "1")]
    )
    assert events.answered_by(2000) == 6000
    assert events.answered_by(1000) == 999


def test_baselines_know_only_what_came_strictly_before() -> None:
    """What happens in the same instant as a ranking, or later, does not change how it is ordered."""
    earlier: list[Event] = [
        film("1", 0, 5.0),
        film("2", 0, 7.0),
        ranking("a", 1000, "1", "2"),
        click("a", 1005, "1"),
    ]
    judged: list[Event] = [ranking("b", 2000, "1", "2"), click("b", 2005, "1")]
    # By then the second is the popular one, and only the first was clicked.
    expected = {"popularity": pytest.approx(1 / 1.5849625), "ctr": pytest.approx(1.0)}
    later: list[list[Event]] = [
        [],
        [film("1", 2000, 99.0), click("a", 2000, "2"), click("a", 2000, "2")],
        [film("1", 2001, 99.0), click("a", 2001, "2"), click("a", 2001, "2")],
    ]
    for noise in later:
        events = RankLensEvents([*earlier, *judged, *noise])
        report = baselines(events, lambda one: one.ranking_id == "b")
        assert {name: figures["ndcg@5"] for name, figures in report.items()} == expected
