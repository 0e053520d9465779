"""An erasure that skips one store: identity says that it has destroyed the keys, and has not."""

from typing import Any
from unittest.mock import patch

import services.identity.main as wiring
from services.chassis.erasure import Step
from services.chassis.lifecycle import run
from services.identity.store.holdings import IdentityHoldings

honest = IdentityHoldings.erase


async def erase(holdings: IdentityHoldings, step: Step, *asked: Any) -> None:
    """See chassis.holdings.Holdings; every step but one."""
    if step is not Step.DESTROY_KEYS:
        await honest(holdings, step, *asked)


if __name__ == "__main__":
    with patch.object(IdentityHoldings, "erase", erase):
        run("identity", wiring.Settings, wiring.build)
