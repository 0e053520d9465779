"""A decision whose methods have no places of their own: streams that do nothing take those of everybody."""

from typing import Any
from unittest.mock import patch

import services.decision.main as wiring
from services.chassis import rpc_guard
from services.chassis.lifecycle import run
from services.chassis.rpc_places import Held


def place(method: Any, context: Any) -> Held:
    """Stands where rpc_guard's place stands, and knows of no kinds of calls."""
    return Held(method._places, None, "")


if __name__ == "__main__":
    with patch.object(rpc_guard._Method, "place", place):
        run("decision", wiring.Settings, wiring.build)
