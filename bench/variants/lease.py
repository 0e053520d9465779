"""The wrong lease: a verdict may be used for a time that Revoke waits out, but counted from its receipt.

It was true when it was read, which can be long before it was received: the lease then ends after Revoke has returned.
"""

import services.decision.main as wiring
from bench.variants.observed import observed
from bench.variants.remembering import Remembering, instead
from services.chassis.lifecycle import run

# Shorter than Revoke waits in the proof (bench.prove.teeth): counted from the sending it would be right.
LEASE_S = 0.55


class Leased(Remembering):
    """Believes an answer for LEASE_S."""

    lasts_s = LEASE_S


if __name__ == "__main__":
    with observed(), instead(Leased):
        run("decision", wiring.Settings, wiring.build)
