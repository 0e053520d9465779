"""A features that a row which cannot be read keeps from starting."""

from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import services.features.main as wiring
from services.chassis.dead_letters import Rows
from services.chassis.lifecycle import run


async def read(_: Rows, rows: Iterable[Any], parse: Callable[[Any], Any], **_again: Any) -> list[tuple[Any, Any]]:
    """See chassis.dead_letters; raises for all of them."""
    return [(row, parse(row)) for row in rows]


if __name__ == "__main__":
    with patch.object(Rows, "read", read):
        run("features", wiring.Settings, wiring.build)
