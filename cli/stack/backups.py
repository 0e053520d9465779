"""A stack's data as one archive and a manifest; and back, with what consent's journal knows of the time between.

An archive holds the databases, the streams, the secrets and the state: everything but logs, traces and the cache. It is
taken while the stack is down, so it is one moment of all of it. The journal is not in it: it is what a restored archive
is brought up to date with, when consent starts.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from cli.stack.state import DataDir, State, discard, require_stopped
from cli.stack.users import POSTGRES_UID, give, is_root
from services.chassis.errors import Kind, ServiceError
from services.consent.domain.journal import ERASED, JournalBrokenError, Mark, file_name, read

FORMAT = 1
ARCHIVE, MANIFEST = "data.tar", "manifest.json"
CHUNK_BYTES = 2**20

# Told how many bytes were read or written since the last time.
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself.

    Args:
        taken_at: UTC, ISO 8601.
        versions: of the servers whose files these are.
        size_bytes: of the archive.
        sha256: of the archive, hex.
        journal: file of consent's journal; empty: consent was never started.
        journal_entries: how many lines it had then.
    """

    taken_at: str
    versions: dict[str, str]
    size_bytes: int
    sha256: str
    journal: str
    journal_entries: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the time since a backup.

    Args:
        journal: the file that was found; None: none.
        entries: lines of it that are valid.
        until: when the newest of them was recorded, UTC, ISO 8601; empty: there is none.
        refusals: how many refusals and revocations are newer than the backup.
        erasures: how many erasures are.
        valid_bytes: of the file.
        broken: what is behind the valid lines is not what was written there.
    """

    journal: Path | None = None
    entries: int = 0
    until: str = ""
    refusals: int = 0
    erasures: int = 0
    valid_bytes: int = 0
    broken: bool = False

    @property
    def doubt(self) -> str:
        """Why refusals and erasures since the backup may be forgotten, in one line; empty: they are not."""
        if self.journal is None:
            return "there is no journal: whoever was erased or took consent back since the backup will count again"
        if self.broken:
            return (
                f"the journal {self.journal} is broken behind line {self.entries}: what was refused later is not known"
            )
        return ""


def contents(data_dir: Path) -> dict[str, Path]:
    """What a backup of a stopped stack holds, by its name in the archive.

    Raises:
        ServiceError: FAILED_PRECONDITION when there is no stack, or some of its data is on servers of somebody else.
    """
    folder = DataDir(data_dir)
    state = folder.read()
    if state is None:
        raise _refusal("NOT_A_STACK", f"{data_dir} holds no stack; name its folder with --data-dir")
    if state.external:
        raise _refusal(
            "SERVERS_ARE_EXTERNAL",
            f"{', '.join(state.external)} of this stack is not in {data_dir}: back it up by its own means; "
            "consent brings a restored database up to date with its journal when it starts",
        )
    found = {
        "state.json": folder.path / "state.json",
        "secrets": folder.secrets,
        "nats": folder.nats,
        "postgres": folder.postgres(state.stack_id),
    }
    return {name: path for name, path in found.items() if path.exists()}


def size_of(paths: Iterator[Path]) -> int:
    """Bytes of the files at and below the paths."""
    return sum(file.stat().st_size for path in paths for file in (path, *path.rglob("*")) if file.is_file())


def back_up(data_dir: Path, to: Path, advance: Advance) -> Manifest:
    """Write a backup of a stopped stack into a new folder, readable by its owner only: it holds the keys.

    Raises:
        ServiceError: FAILED_PRECONDITION when the stack runs, is none, or there is something at *to*.
    """
    folder = DataDir(data_dir)
    held = contents(data_dir)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise _refusal("BACKUP_EXISTS", f"{to} is not empty; name a new folder for each backup")
    with folder.exclusive():
        state = _state(folder)
        require_stopped(state, folder.path)
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _removed_unless_done(to):
            sha256 = _pack(held, to / ARCHIVE, advance)
            key = folder.journal_key
            known = look_into_journal(key, [folder.journal()], 0)
            manifest = Manifest(
                taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=dict(state.versions),
                size_bytes=(to / ARCHIVE).stat().st_size,
                sha256=sha256,
                journal=str(folder.journal() / file_name(key)) if key is not None else "",
                journal_entries=known.entries,
            )
            (to / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """What the backup says of itself.

    Raises:
        ServiceError: FAILED_PRECONDITION when there is none, or it is of a later release.
    """
    try:
        content: dict[str, Any] = json.loads((backup / MANIFEST).read_text())
        if content["format"] != FORMAT:
            raise _refusal(
                "BACKUP_OF_ANOTHER_RELEASE", f"{backup} has format {content['format']}; this CLI knows {FORMAT}"
            )
        return Manifest(**content)
    except FileNotFoundError as error:
        raise _refusal(
            "NOT_A_BACKUP", f"{backup} holds no {MANIFEST}: it is no backup, or one that was not finished"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal("BACKUP_DAMAGED", f"{backup / MANIFEST} cannot be read; use another backup") from error


@contextmanager
def unpacked(backup: Path, manifest: Manifest, data_dir: Path, advance: Advance) -> Iterator[DataDir]:
    """The backup's files beside the place that they are for; what is still there at the end is removed.

    Raises:
        ServiceError: FAILED_PRECONDITION when the archive is not the one that was written.
    """
    target = DataDir(data_dir).path
    fresh = target.with_name(f"{target.name}.restoring")
    shutil.rmtree(fresh, ignore_errors=True)
    if _sha256(backup / ARCHIVE, advance) != manifest.sha256:
        raise _refusal("BACKUP_DAMAGED", f"{backup / ARCHIVE} is not what was written there; use another backup")
    fresh.mkdir(mode=0o711 if is_root() else 0o700, parents=True)
    try:
        with tarfile.open(backup / ARCHIVE) as archive:
            archive.extraction_filter = getattr(tarfile, "tar_filter", lambda member, _: member)
            archive.extractall(fresh, numeric_owner=True)
        yield DataDir(fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def put_in_place(fresh: DataDir, data_dir: Path, known: Known) -> Path:
    """Make the unpacked files the stack of the data directory, in place of the one there; where its journal lies.

    Raises:
        ServiceError: FAILED_PRECONDITION when the stack there runs.
    """
    folder = DataDir(data_dir)
    if folder.path.exists():
        discard(data_dir, keep_journal=True)
    fresh.path.rename(folder.path)
    state = folder.adopt()
    if is_root():
        # Its user cannot be root, and a move to another disk made the files root's.
        give(folder.postgres(state.stack_id), POSTGRES_UID)
    place = folder.journal()
    if known.journal is not None:
        _put_journal(known, place)
    return place


def _put_journal(known: Known, place: Path) -> None:
    """Have the valid lines in the stack's own place; what is broken is set aside."""
    assert known.journal is not None, "there is one"
    file = place / known.journal.name
    if known.broken:
        shutil.copyfile(known.journal, known.journal.with_suffix(".broken"))
    if file.exists() and file.samefile(known.journal):
        os.truncate(file, known.valid_bytes)
        return
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(".copying")
    fresh.touch(mode=0o600)
    shutil.copyfile(known.journal, fresh)
    os.truncate(fresh, known.valid_bytes)
    fresh.replace(file)


def require_free(data_dir: Path, *, replace: bool) -> None:
    """Returns when a stack may be put there.

    Raises:
        ServiceError: FAILED_PRECONDITION (DATA_DIR_EXISTS, NOT_A_STACK, STACK_IS_UP).
    """
    folder = DataDir(data_dir)
    if not folder.path.exists() or not any(folder.path.iterdir()):
        return
    if not replace:
        raise _refusal(
            "DATA_DIR_EXISTS",
            f"{data_dir} is not empty; name another --data-dir, or put the backup there with --replace",
        )
    state = folder.read()
    if state is None:
        raise _refusal(
            "NOT_A_STACK", f"{data_dir} holds something else than a stack, which is not removed; name another"
        )
    require_stopped(state, folder.path)


def look_into_journal(key: bytes | None, folders: list[Path], entries_then: int) -> Known:
    """What the journal knows, in the first of the folders that has one.

    Args:
        key: that it is signed with; None: there is none to look for.
        entries_then: how many lines the journal had when the backup was taken.
    """
    files = [] if key is None else [folder / file_name(key) for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if key is None or found is None:
        return Known()
    counts: Counter[bool] = Counter()
    mark, until, broken = Mark(), "", False
    with found.open("rb") as lines:
        try:
            for entry, mark in read(key, Mark(), lines):
                until = entry.recorded_at.isoformat(timespec="seconds")
                if mark.number > entries_then:
                    counts[entry.verdict == ERASED] += 1
        except JournalBrokenError:
            broken = True
    return Known(found, mark.number, until, counts[False], counts[True], mark.size_bytes, broken)


def _state(folder: DataDir) -> State:
    state = folder.read()
    assert state is not None, "contents() has seen it"
    return state


def _pack(held: dict[str, Path], archive: Path, advance: Advance) -> str:
    """Write the archive; its SHA-256."""
    with archive.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        counted = _Counted(file, advance)
        with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as packed:  # type: ignore[call-overload]
            for name, path in held.items():
                packed.add(path, arcname=name)
        os.fsync(file.fileno())
    return counted.sha256.hexdigest()


class _Counted:
    """A file to write to that hashes and counts what is written."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file = file
        self._advance = advance
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self._advance(len(data))
        return self._file.write(data)


def _sha256(archive: Path, advance: Advance) -> str:
    sha256 = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            advance(len(chunk))
    return sha256.hexdigest()


@contextmanager
def _removed_unless_done(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for name in (ARCHIVE, MANIFEST):
            (folder / name).unlink(missing_ok=True)
        raise


def _refusal(reason: str, message: str) -> ServiceError:
    return ServiceError(Kind.FAILED_PRECONDITION, reason, message)
