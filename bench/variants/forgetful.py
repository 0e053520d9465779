"""An erasure that skips one store: feedback says that it has deleted what it holds, and has not."""

from typing import Any
from unittest.mock import patch

import services.feedback.main as wiring
from services.chassis.lifecycle import run
from services.feedback.store.holdings import FeedbackHoldings


async def erase(_: FeedbackHoldings, *asked: Any) -> None:
    """See chassis.holdings.Holdings; the lie."""


if __name__ == "__main__":
    with patch.object(FeedbackHoldings, "erase", erase):
        run("feedback", wiring.Settings, wiring.build)
