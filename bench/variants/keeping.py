"""A decision that logs what the caller said also where it is for nobody, whom no erasure finds."""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.handlers import draft

if __name__ == "__main__":
    with patch.object(draft, "of_nobody", lambda record: record, create=True):
        run("decision", wiring.Settings, wiring.build)
