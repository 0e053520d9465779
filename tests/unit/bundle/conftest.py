"""A bundle that a test may spoil."""

import shutil
from pathlib import Path

import pytest

from tests.unit.bundle.samples import SHOP, Edit


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A copy of the shop's bundle that a test may spoil."""
    return Path(shutil.copytree(SHOP, tmp_path / "shop"))


@pytest.fixture
def edit(shop: Path) -> Edit:
    """`edit(file, old, new)` replaces text that must be there."""

    def replace(file: str, old: str, new: str) -> None:
        text = (shop / file).read_text()
        assert old in text
        (shop / file).write_text(text.replace(old, new, 1))

    return replace
