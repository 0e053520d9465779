"""The journal of refusals: what a restored backup would forget, as lines that nobody can change unseen.

It holds what was refused, taken back or erased, and never a grant: pseudonym, purpose, verdict and times, each with the
id and the place that the fact has in consent's log. A line is canonical JSON. Its `mac` is an HMAC over the line and
the mac before it, so that a line can neither be changed, left out, put in nor moved; what was cut off at the end does
not show in the lines themselves (the database knows how many there were).
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.chassis.events import ORIGIN, LogPosition
from services.consent.domain.ledger import State
from services.consent.domain.receipts import canonical

# Verdict of an erasure; the others are names of states: DENIED, OBJECTED, REVOKED.
ERASED = "ERASED"
REFUSALS = {state.name: state for state in (State.DENIED, State.OBJECTED, State.REVOKED)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A refusal, or an erasure.

    Args:
        event_id: of the fact in the log.
        position: of the fact in the log that it was read from.
        verdict: of REFUSALS, or ERASED.
        member_ids: one for a refusal; all of the person's for an erasure.
        purpose: empty for an erasure, which is about every purpose.
        answered_at: when the person said so, where they said it before it was recorded.
        erasure_id, subject_id: of an erasure.
    """

    event_id: str
    position: LogPosition
    verdict: str
    member_ids: tuple[str, ...]
    purpose: str
    recorded_at: datetime
    answered_at: datetime
    erasure_id: str = ""
    subject_id: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a journal, behind a line.

    Args:
        number: of the line, from 1; 0: the beginning.
        mac: of the line, hex.
        size_bytes: of the journal up to there.
        position: in the log, of the line's fact.
    """

    number: int = 0
    mac: str = ""
    size_bytes: int = 0
    position: LogPosition = ORIGIN


class JournalBrokenError(ValueError):
    """A line is not what was written there.

    Args:
        mark: behind the last line that is.
    """

    def __init__(self, mark: Mark) -> None:
        super().__init__(f"line {mark.number + 1} is not what was written there")
        self.mark = mark


def key_of(secret: bytes) -> bytes:
    """The key of the lines, of the secret that receipts are signed with."""
    return hashlib.sha256(b"comity.journal|" + secret).digest()


def file_name(key: bytes) -> str:
    """The journal's file: a new secret begins a new one, and stacks that share a folder do not meet."""
    return f"consent-{hashlib.sha256(key).hexdigest()[:16]}.journal"


def lock_name(key: bytes) -> str:
    """The file beside it that its writer holds."""
    return f"{file_name(key)}.lock"


def lines_of(key: bytes, after: Mark, entries: Sequence[Entry]) -> tuple[bytes, Mark]:
    """The lines to append for these entries, and where the journal then ends."""
    data, mark = b"", after
    for entry in entries:
        body = {"number": mark.number + 1, **_body(entry)}
        mac = _mac(key, mark.mac, body)
        line = canonical({**body, "mac": mac}) + b"\n"
        data += line
        mark = Mark(mark.number + 1, mac, mark.size_bytes + len(line), entry.position)
    return data, mark


def read(key: bytes, after: Mark, lines: Iterable[bytes]) -> Iterator[tuple[Entry, Mark]]:
    """Each entry of the lines behind a mark, with the mark behind it; a last line that was cut off is none.

    Raises:
        JournalBrokenError: at the first line that is not what was written there.
    """
    mark = after
    for line in lines:
        if not line.endswith(b"\n"):
            return
        try:
            body = json.loads(line)
            mac = body.pop("mac")
            genuine = body["number"] == mark.number + 1 and hmac.compare_digest(mac, _mac(key, mark.mac, body))
            entry = _entry(body) if genuine else None
        except (ValueError, KeyError, TypeError, AttributeError):
            entry = None
        if entry is None:
            raise JournalBrokenError(mark)
        mark = Mark(mark.number + 1, mac, mark.size_bytes + len(line), entry.position)
        yield entry, mark


def _mac(key: bytes, previous: str, body: dict[str, Any]) -> str:
    return hmac.new(key, previous.encode() + canonical(body), hashlib.sha256).hexdigest()


def _body(entry: Entry) -> dict[str, Any]:
    body: dict[str, Any] = {
        "event_id": entry.event_id,
        "epoch": entry.position.epoch,
        "xid": entry.position.xid,
        "position": entry.position.position,
        "verdict": entry.verdict,
        "member_ids": list(entry.member_ids),
        "recorded_at": entry.recorded_at.isoformat(),
    }
    if entry.verdict == ERASED:
        return body | {"erasure_id": entry.erasure_id, "subject_id": entry.subject_id}
    return body | {"purpose": entry.purpose, "answered_at": entry.answered_at.isoformat()}


def _entry(body: dict[str, Any]) -> Entry:
    recorded_at = datetime.fromisoformat(body["recorded_at"])
    return Entry(
        event_id=body["event_id"],
        position=LogPosition(body["epoch"], body["xid"], body["position"]),
        verdict=body["verdict"],
        member_ids=tuple(body["member_ids"]),
        purpose=body.get("purpose", ""),
        recorded_at=recorded_at,
        answered_at=datetime.fromisoformat(body["answered_at"]) if "answered_at" in body else recorded_at,
        erasure_id=body.get("erasure_id", ""),
        subject_id=body.get("subject_id", ""),
    )
