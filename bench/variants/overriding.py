"""The wrong correction: an attempt that answered the default puts it over version 1, whoever made and answered that.

It looks right while there is one attempt, and was the first design: a retry on a log that was held up rewrote what had
been shown.
"""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.domain.attempts import Logged
from services.decision.domain.record import DecisionRecord
from services.decision.handlers import corrections


def overriding(logged: Logged | None, attempt_id: str, answered: DecisionRecord) -> DecisionRecord | None:
    """Stands where domain.attempts.settled stands, and asks nobody whose version 1 it is."""
    return answered if logged is not None and logged.version == 1 else None


if __name__ == "__main__":
    with patch.object(corrections, "settled", overriding):
        run("decision", wiring.Settings, wiring.build)
