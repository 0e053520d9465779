"""The wrong consent read of most systems: verdicts are cached for a while."""

import services.decision.main as wiring
from bench.variants.observed import observed
from bench.variants.remembering import Remembering, instead
from services.chassis.lifecycle import run

# A short one, as such caches go; longer than the drain of a Revoke, which would cover a shorter one.
TTL_S = 3.0


class Cached(Remembering):
    """Believes an answer for TTL_S."""

    lasts_s = TTL_S


if __name__ == "__main__":
    with observed(), instead(Cached):
        run("decision", wiring.Settings, wiring.build)
