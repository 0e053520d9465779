"""Every byte below a folder, also what lies in it compressed, looked through for canaries."""

import gzip
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cli.privacy.scan import Hit, Scanner

CHUNK_BYTES = 8 * 2**20
# A file of a few kilobytes can unpack to anything; what is beyond this is said not to have been read.
UNPACKED_BYTES_MAX = 8 * 2**30
# Beginnings of files that pack their content in a way that nothing here unpacks.
PACKED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}
GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"


@dataclass(slots=True)
class FileHits:
    """What was found in one file.

    Args:
        counts: (canary, form) → how often.
        first_offset: of the first hit, in the file or in what it unpacks to.
    """

    path: str
    counts: Counter[tuple[int, str]]
    first_offset: int


@dataclass(slots=True)
class Found:
    """What a scan found.

    Args:
        unread: path → why not, of what was not looked into.
    """

    files_count: int = 0
    bytes_count: int = 0
    hits: list[FileHits] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def canaries(self) -> set[int]:
        """Those that were found anywhere."""
        return {number for one in self.hits for number, _ in one.counts}


def sizes(folders: Sequence[Path]) -> dict[Path, int]:
    """Every file below the folders, once, with its size; links are not followed."""
    found: dict[Path, int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root, name)
                if path.is_file() and not path.is_symlink():
                    found[path] = path.stat().st_size
    return found


def scan_files(scanner: Scanner, paths: Iterable[Path], advance: Callable[[int], None] = lambda _: None) -> Found:
    """Look through the files.

    Args:
        advance: told how many bytes of files were read since the last time.
    """
    found = Found()
    for path in paths:
        try:
            _scan_file(scanner, path, found, advance)
        except FileNotFoundError:
            # Servers come and go with theirs.
            continue
        except OSError as error:
            found.unread[str(path)] = error.strerror or type(error).__name__
    return found


def _scan_file(scanner: Scanner, path: Path, found: Found, advance: Callable[[int], None]) -> None:
    with path.open("rb") as file:
        beginning = file.read(8)
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in _chunks(path):
            size += len(chunk)
            advance(len(chunk))
            yield chunk

    _note(found, str(path), scanner.scan_stream(counted()))
    found.files_count += 1
    found.bytes_count += size
    packing = next((name for magic, name in PACKED.items() if beginning.startswith(magic)), None)
    if packing is not None:
        found.unread[str(path)] = f"{packing} cannot be unpacked here; its raw bytes were read"
    try:
        for name, chunks in _unpacked(path, beginning):
            _note(found, name, scanner.scan_stream(_bounded(chunks)))
    except (EOFError, zlib.error, zipfile.BadZipFile, _TooMuchError, gzip.BadGzipFile, RuntimeError) as error:
        found.unread[str(path)] = f"not unpacked: {error or type(error).__name__}"


def _note(found: Found, path: str, hits: Iterator[Hit]) -> None:
    counts: Counter[tuple[int, str]] = Counter()
    first = -1
    for hit in hits:
        counts[hit.canary, hit.form] += 1
        first = hit.offset if first < 0 else min(first, hit.offset)
    if counts:
        found.hits.append(FileHits(path, counts, first))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _read(file)


def _read(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _unpacked(path: Path, beginning: bytes) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, content) of what lies packed in the file."""
    if beginning.startswith(GZIP):
        with gzip.open(path) as packed:
            yield f"{path} (unpacked)", _read(packed)
    elif beginning.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    yield f"{path} ({info.filename})", _read(member)


class _TooMuchError(Exception):
    pass


def _bounded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > UNPACKED_BYTES_MAX:
            raise _TooMuchError(f"it unpacks to more than {UNPACKED_BYTES_MAX:,} bytes")
        yield chunk
