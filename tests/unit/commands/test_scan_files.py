"""Canaries are found in whatever file they lie, and what could not be looked into is said."""

import gzip
import os
import secrets
import zipfile
from pathlib import Path

from cli.privacy.files import CHUNK_BYTES, scan_files, sizes
from cli.privacy.scan import Scanner, forms_of_text

CANARIES = ["first canary of all", "second canary of all"]
SCANNER = Scanner([forms_of_text(text) for text in CANARIES])


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    """Plain, across two chunks, gzip, zip (as npz and models are), in folders below."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "log").write_text(f"x {CANARIES[0]} x {CANARIES[0]}")
    (tmp_path / "large").write_bytes(b"\xff" * (CHUNK_BYTES - 5) + CANARIES[1].encode("utf-16-le") + b"\xff" * 9)
    (tmp_path / "old.gz").write_bytes(gzip.compress(b"..." + CANARIES[1].encode()))
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names.npy", CANARIES[0].encode().hex())
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(secrets.token_bytes(100_000))
    read = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count

    paths = sizes([tmp_path])
    found = scan_files(SCANNER, sorted(paths), advance)
    hits = {(Path(one.path).name, *key): count for one in found.hits for key, count in one.counts.items()}
    assert hits == {
        ("log", 0, "plain"): 2,
        ("large", 1, "utf-16le"): 1,
        ("old.gz (unpacked)", 1, "plain"): 1,
        ("data.npz (names.npy)", 0, "hex"): 1,
    }
    assert found.canaries == {0, 1}
    assert found.files_count == len(paths) == 6
    assert read == found.bytes_count == sum(paths.values())


def test_what_cannot_be_looked_into_is_said(tmp_path: Path) -> None:
    """A file packed in a way that is not known, and one that is cut."""
    (tmp_path / "packed.zst").write_bytes(b"\x28\xb5\x2f\xfd" + secrets.token_bytes(100))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(secrets.token_bytes(1000))[:-20])
    found = scan_files(SCANNER, sizes([tmp_path]))
    assert {Path(path).name for path in found.unread} == {"packed.zst", "cut.gz"}
    assert found.files_count == 2


def test_files_that_go_and_links_cost_nothing(tmp_path: Path) -> None:
    """A server may delete its file meanwhile; a link's target is read where it lies, or not at all."""
    (tmp_path / "gone").write_text(CANARIES[0])
    os.symlink("/etc", tmp_path / "elsewhere")
    paths = sizes([tmp_path])
    (tmp_path / "gone").unlink()
    found = scan_files(SCANNER, paths)
    assert (found.files_count, found.hits, found.unread) == (0, [], {})
