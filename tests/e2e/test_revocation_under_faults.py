"""G7 in small: revocation holds on several replicas while one stands still and consent is killed; the checker bites."""

from bench.prove.faults import Fault, Kind
from bench.prove.revocation import Pace
from bench.prove.teeth import TEETH, try_tooth
from bench.prove.under_faults import breakable, try_under_faults
from cli.stack import temporary_folder

FAULTS = (Fault(Kind.STOP, "decision-2", seconds=1.5), Fault(Kind.KILL, "consent", seconds=0.3))
PACE = Pace(people=24, in_flight=12, granted_s=(1.5, 5.0), changes=4)
CALM_S = (0.5, 1.0)
DECIDES, REVOKES = 800, 60


async def test_revocation_holds_while_processes_stand_still_and_die() -> None:
    """No Decide sent after a Revoke returned uses the profile, none emits it; with a cache of verdicts they do."""
    with temporary_folder() as folder:
        async with breakable(folder, replicas=2, disposable=True) as found:
            tally, faults = await try_under_faults(
                found, FAULTS, decides=DECIDES, revokes=REVOKES, faults_min=len(FAULTS), pace=PACE, calm_s=CALM_S
            )
            assert (tally.p1, tally.p2, tally.stale) == (0, 0, 0), tally.refs
            assert [window.fault for window in faults.windows] == list(FAULTS)
            assert tally.calm_ranked > 0
            assert tally.retries > 0
            cached = await try_tooth(found, TEETH["cache_with_a_ttl"], seed=1)
            assert cached.p1 > 0
