"""A decision that waits for every scoring, however long it takes."""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.handlers.scoring import Scoring

if __name__ == "__main__":
    with patch.object(Scoring, "_watch", lambda _: None):
        run("decision", wiring.Settings, wiring.build)
