"""An export as files: JSON Lines with their schema for programs, a page for the person; for its owner's eyes only."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, TextIO

from cli.privacy.story import readable, sentence_of
from services.chassis.errors import Kind, ServiceError

SCHEMA = "comity.privacy.export/1"
LINES, DESCRIPTION, PAGE = "subject.jsonl", "schema.json", "index.html"
# A page of more is no reading; the lines have all of it.
SHOWN_MAX = 2_000

LINE_SCHEMA: Mapping[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": SCHEMA,
    "description": f"One line of {LINES} after the first: one record that a service holds about the person.",
    "type": "object",
    "required": ["service", "store", "name", "schema", "member_id", "content"],
    "properties": {
        "service": {"type": "string", "description": "which of the five services holds it"},
        "store": {"type": "string", "description": "postgres, valkey, nats or files"},
        "name": {"type": "string", "description": "table, key or channel"},
        "schema": {"type": "string", "description": "full name of the message that content is the JSON form of"},
        "member_id": {"type": "string", "description": "pseudonym of the person that it was recorded under"},
        "occurred_at": {"type": "string", "format": "date-time"},
        "content": {"type": "object"},
    },
}

# Headings of the page in order, and the last part of the schemas below each.
SECTIONS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "How you are known",
        frozenset({"IdentityLinked", "IdentityUnlinked", "DataKeyMinted", "member", "link", "data key"}),
    ),
    (
        "What you answered when you were asked",
        frozenset({"ConsentGranted", "ConsentDenied", "ConsentObjected", "ConsentRevoked", "ConsentExpired"}),
    ),
    ("What you did", frozenset({"BehaviorRecorded"})),
    ("What was decided for you, and why", frozenset({"DecisionMade"})),
    ("What came of it", frozenset({"OutcomeAttributed"})),
    ("Who has looked at this", frozenset({"PersonalDataAccessed"})),
)
OTHER = "What was computed from it, and all else"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #d0d7de }
details { margin: .4rem 0 } summary { cursor: pointer } .when { color: #57606a; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; margin: .3rem 0 .6rem 1.2rem }
td { padding: .1rem .8rem .1rem 0; vertical-align: top }
td:first-child { color: #57606a } .empty { color: #57606a }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } h2 { border-color: #30363d }
.when, td:first-child, .empty { color: #8b949e } }
"""

Record = Mapping[str, Any]


@contextmanager
def export_folder(folder: Path) -> Iterator[TextIO]:
    """The file to write records to, one a line; its first line is there. Fails as a whole: nothing is left then.

    Raises:
        ServiceError: FAILED_PRECONDITION (FILE_EXISTS): an export is never written over.
    """
    taken = [name for name in (LINES, DESCRIPTION, PAGE) if (folder / name).exists()]
    if taken:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "FILE_EXISTS",
            f"{folder / taken[0]} is there already; name another folder with --to, or remove it",
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with _private(folder / LINES) as lines:
            write_line(lines, {"schema": SCHEMA, "description": DESCRIPTION})
            yield lines
        with _private(folder / DESCRIPTION) as description:
            json.dump(LINE_SCHEMA, description, indent=2)
        with _private(folder / PAGE) as page, (folder / LINES).open(encoding="utf-8") as lines:
            next(lines)
            page.writelines(page_of(json.loads(line) for line in lines))
    except BaseException:
        for name in (LINES, DESCRIPTION, PAGE):
            (folder / name).unlink(missing_ok=True)
        raise


def write_line(file: TextIO, record: Record) -> None:
    """One record as one line."""
    file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def page_of(records: Iterable[Record]) -> Iterator[str]:
    """A page that needs nothing else and runs nothing: every value of a record is shown as text."""
    by_section: dict[str, list[Record]] = {title: [] for title in (*(title for title, _ in SECTIONS), OTHER)}
    for record in records:
        kind = str(record["schema"]).rpartition(".")[2]
        by_section[next((title for title, kinds in SECTIONS if kind in kinds), OTHER)].append(record)
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What is held about you</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        "<h1>What is held about you</h1>"
        "<p>Everything that this site holds about you, from all of its services, as sentences; the data behind each "
        f"opens below it. {LINES} beside this page has the same for programs, and with it what only programs can read."
        "</p>"
    )
    for title, among in by_section.items():
        yield f"<h2>{escape(title)} ({len(among)})</h2>"
        yield from map(_record, sorted(among, key=lambda one: str(one.get("occurred_at", "")))[:SHOWN_MAX])
        if not among:
            yield '<p class="empty">Nothing.</p>'
        elif len(among) > SHOWN_MAX:
            yield f'<p class="empty">The first {SHOWN_MAX} of {len(among)}; {LINES} has all of them.</p>'
    yield "</body></html>\n"


def _record(record: Record) -> str:
    when = str(record.get("occurred_at", ""))[:19].replace("T", " ")
    schema, content = str(record["schema"]), record["content"]
    where = {"kept by": f"{record['service']}, {record['store']} {record['name']}", "kind": schema}
    return (
        f'<details><summary><span class="when">{escape(when)}</span> {escape(sentence_of(schema, content))}'
        f"</summary>{_value({**readable(schema, content), **where})}</details>\n"
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{_value(one)}</td></tr>" for key, one in value.items())
        return f"<table>{rows}</table>"
    if isinstance(value, list):
        if all(not isinstance(one, Mapping | list) for one in value):
            return escape(", ".join(map(str, value)))
        return "".join(map(_value, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has no whole numbers
    return escape(str(value))


def _private(path: Path) -> TextIO:
    """A new file that its owner alone can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
