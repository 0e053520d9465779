"""The journal's lines: written, read back, and nothing changed unseen."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.events import LogPosition
from services.consent.domain.journal import ERASED, Entry, JournalBrokenError, Mark, file_name, key_of, lines_of, read

KEY = key_of(b"s" * 32)
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
REVOKED = Entry("e1", LogPosition(1, 10, 100), "REVOKED", ("a" * 26,), "ads", AT, AT)
OBJECTED = Entry("e2", LogPosition(1, 11, 101), "OBJECTED", ("b" * 26,), "ads", AT, AT - timedelta(days=3))
GONE = Entry("e3", LogPosition(1, 12, 102), ERASED, ("a" * 26, "c" * 26), "", AT, AT, "erasure-1", "c" * 26)
BEGIN = Mark()
ENTRIES = [REVOKED, OBJECTED, GONE]


def written(entries: list[Entry], after: Mark = BEGIN) -> tuple[list[bytes], Mark]:
    data, end = lines_of(KEY, after, entries)
    return data.splitlines(keepends=True), end


def read_back(lines: list[bytes], after: Mark = BEGIN) -> list[Entry]:
    return [entry for entry, _ in read(KEY, after, lines)]


def test_what_was_written_is_read_back() -> None:
    """Every field, and the marks are where the lines end."""
    lines, end = written(ENTRIES)
    found = list(read(KEY, Mark(), lines))
    assert [entry for entry, _ in found] == ENTRIES
    assert found[-1][1] == end
    assert end.size_bytes == sum(map(len, lines))


def test_a_line_holds_pseudonym_purpose_verdict_and_times() -> None:
    """And what chains it; no notice, no place, no reason."""
    (line, *_), _ = written([OBJECTED])
    assert {key for key in ("notice", "jurisdiction", "mechanism", "reason") if key in line.decode()} == set()


@given(st.integers(0, 3), st.integers(0, 3))
def test_writing_goes_on_where_reading_ended(first: int, second: int) -> None:
    """Lines written in any number of goes are the same lines."""
    begun, middle = written(ENTRIES[:first])
    then, _ = written(ENTRIES[first : first + second], middle)
    assert begun + then == written(ENTRIES[: first + second])[0]
    assert read_back(then, middle) == ENTRIES[first : first + second]


def test_a_last_line_that_was_cut_off_is_none() -> None:
    """A crash in the middle of writing: what is before it stands."""
    lines, _ = written(ENTRIES)
    for length in range(len(lines[-1])):
        assert read_back([*lines[:2], lines[-1][:length]]) == ENTRIES[:2]


@pytest.mark.parametrize(
    "broken", ["changed", "left out", "moved", "put in", "of another key", "not JSON", "not a line"]
)
def test_a_line_that_is_not_what_was_written_ends_the_reading(broken: str) -> None:
    """What is before it is given, and the error says where that ends."""
    lines, _ = written(ENTRIES)
    others = lines_of(key_of(b"t" * 32), Mark(), ENTRIES)[0].splitlines(keepends=True)
    wrong = {
        "changed": [lines[0], lines[1].replace(b"OBJECTED", b"DENIED")],
        "left out": [lines[0], lines[2]],
        "moved": [lines[0], lines[2], lines[1]],
        "put in": [lines[0], lines[0], lines[1]],
        "of another key": [lines[0], others[1]],
        "not JSON": [lines[0], b"\0\0\0\n"],
        "not a line": [lines[0], b"[]\n"],
    }[broken]
    found: list[tuple[Entry, Mark]] = []
    with pytest.raises(JournalBrokenError) as caught:
        found.extend(read(KEY, BEGIN, wrong))
    assert [entry for entry, _ in found] == [REVOKED]
    assert caught.value.mark == found[-1][1]


def test_each_secret_has_a_file_of_its_own() -> None:
    """So stacks that share a folder do not meet, and a new secret begins a new journal."""
    assert file_name(KEY) == file_name(key_of(b"s" * 32)) != file_name(key_of(b"t" * 32))


def test_erasures_name_whole_persons() -> None:
    """Every member, and which of them names the person."""
    (entry,) = read_back(written([replace(GONE, position=LogPosition(2, 1, 1))])[0])
    assert (entry.member_ids, entry.subject_id, entry.purpose) == (GONE.member_ids, "c" * 26, "")
