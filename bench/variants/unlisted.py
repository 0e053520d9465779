"""A decision that looks at no model file before the runtime does: no list of operators, no bounds, no external data."""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.ranker import trial

if __name__ == "__main__":
    with patch.object(trial, "CHILD", "bench.variants.blind_trial"):
        run("decision", wiring.Settings, wiring.build)
