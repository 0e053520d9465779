"""A decision that begins every Decide, whatever is under way: what everybody does who has no limiter."""

from unittest.mock import patch

import services.decision.main as wiring
from services.chassis.lifecycle import run
from services.decision.domain.admission import Admission, Seat

# So long that everything is ready in time.
EVER_S = 1e9


class Unlimited(Admission):
    """Stands where domain.admission.Admission stands, and sends nobody away."""

    def admit(self, caller: str, left_s: float) -> Seat | None:
        """See Admission."""
        return super().admit(caller, EVER_S)


if __name__ == "__main__":
    with patch("services.decision.handlers.decide.Admission", Unlimited):
        run("decision", wiring.Settings, wiring.build)
