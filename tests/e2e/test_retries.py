"""G18 in small: what proves itself is the log's decision, whatever was retried, hedged or rendered twice."""

from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb

from bench.prove import retries
from cli.connections import Services
from cli.stack import Stack
from tests.e2e.people import ranked_person, until_well

SEED = 20261129
PEOPLE_COUNT = 4
ATTEMPTS = 150


async def test_what_proves_itself_is_the_logs_decision_on_an_unwell_log(stack: Stack, services: Services) -> None:
    """The log slow, held up and stopped, identity late in a part: no answer with a token or learnable differs."""
    people = [await ranked_person(services) for _ in range(PEOPLE_COUNT)]

    def request_of(number: int) -> decision_pb.DecideRequest:
        deferred = events_pb.ACTIVATION_DEFERRED if number % 2 else events_pb.ACTIVATION_IMMEDIATE
        return people[number % PEOPLE_COUNT].request(activation=deferred)

    trial = retries.Trial(stack, services, request_of, seed=SEED)
    try:
        await retries.retried_while_held_up(trial, times=2)
        await trial.run(ATTEMPTS, retries.GENTLE_HARMS)
        found = await trial.compare(replays=10)
    finally:
        await until_well(services)
    assert (found.differing, found.foreign, found.not_replaying) == (0, 0, 0), f"seed {SEED}"
    # No process died, so that none could leave a default untold.
    assert found.unsaid == 0
    # It would mean nothing if no retry had met a log that was unwell.
    assert found.proving > 0
    assert found.ambiguous >= 2
