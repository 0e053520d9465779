"""The wrong Revoke: it says that it waits for decisions in flight, and does not."""

from typing import Any
from unittest.mock import patch

import services.consent.main as wiring
from services.chassis.lifecycle import run
from services.consent.handlers.ledger import ConsentHandlers


async def _not_at_all(_: float) -> None:
    return


class Hasty(ConsentHandlers):
    """Stands where ConsentHandlers stands."""

    def __init__(self, *ports: Any, **more: Any) -> None:
        super().__init__(*ports, **{**more, "pause": _not_at_all})


if __name__ == "__main__":
    with patch.object(wiring, "ConsentHandlers", Hasty):
        run("consent", wiring.Settings, wiring.build)
