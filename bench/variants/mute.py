"""A decision that goes on without what it cannot read, and says so to nobody."""

from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from services.chassis import dead_letters
from services.chassis.lifecycle import run
from services.decision.handlers import refresh


async def put_aside(*_: Any) -> None:
    """See chassis.dead_letters; keeps nothing."""


if __name__ == "__main__":
    with (
        patch.object(dead_letters, "put_aside", put_aside),
        patch.object(refresh, "set_alarm", lambda *_: None),
    ):
        run("decision", wiring.Settings, wiring.build)
