"""An export's files: private, whole or absent, never written over, and safe to open."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli.privacy.exporting import DESCRIPTION, LINES, PAGE, export_folder, write_line
from services.chassis.errors import ServiceError

EVIL = "<script>alert('x')</script>\"'&\u2028"


def record(schema: str, **content: object) -> dict[str, object]:
    return {
        "service": "feedback",
        "store": "postgres",
        "name": EVIL,
        "schema": schema,
        "member_id": "a" * 26,
        "occurred_at": "2026-01-02T03:04:05+00:00",
        "content": content,
    }


class Tags(HTMLParser):
    """Every tag and all text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """See HTMLParser."""
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        self.text += data


def test_an_export_is_lines_a_schema_and_a_page(tmp_path: Path) -> None:
    """Each is readable by its owner alone, and the page shows what the lines hold without running any of it."""
    with export_folder(tmp_path / "out") as lines:
        write_line(
            lines, record("comity.feedback.v1.BehaviorRecorded", city=EVIL, items=["a", EVIL], deep={EVIL: [{}]})
        )
        write_line(lines, record("something.Else", n=1))
    folder = tmp_path / "out"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        LINES: 0o600,
        DESCRIPTION: 0o600,
        PAGE: 0o600,
    }
    head, *written = (json.loads(line) for line in (folder / LINES).read_text().split("\n") if line)
    assert head == {"schema": "comity.privacy.export/1", "description": DESCRIPTION}
    assert written[0]["content"]["city"] == EVIL
    assert set(json.loads((folder / DESCRIPTION).read_text())["required"]) <= set(written[0])
    page = Tags()
    page.feed((folder / PAGE).read_text())
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 4
    assert "What you did (1)" in page.text


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A part must not be taken for the whole."""

    def fail() -> None:
        with export_folder(tmp_path / "out") as lines:
            write_line(lines, record("x"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_is_never_written_over(tmp_path: Path) -> None:
    """It may be somebody else's."""
    (tmp_path / LINES).write_text("another person's")
    with pytest.raises(ServiceError) as caught, export_folder(tmp_path):
        pass
    assert caught.value.reason == "FILE_EXISTS"
    assert (tmp_path / LINES).read_text() == "another person's"
