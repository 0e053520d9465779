"""Stacks whose services are stand-ins."""

import sys
from pathlib import Path

import pytest

from cli.stack import programs

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every service of a stack is a stand-in."""
    monkeypatch.setattr(programs, "argv", lambda service: (sys.executable, str(STAND_IN), service))
