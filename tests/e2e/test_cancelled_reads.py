"""The proof of G12, in small: nobody is told what a cancelled read of somebody else was about."""

from bench.prove import cancelled_reads
from cli.connections import Services
from cli.stack import Stack
from tests.e2e.people import NOTICE_VERSION

SEED = 20230324
SITE = cancelled_reads.Site(
    purposes=("profile_personalization", "measurement"),
    event_type="click",
    item_id="tote",
    notice=(NOTICE_VERSION, "en"),
)


async def test_no_reply_of_a_cancelled_read_reaches_another_subject(stack: Stack, services: Services) -> None:
    """Reads of every kind, cancelled at every moment; without one of the protections the same storm finds mix-ups."""
    trial = await cancelled_reads.prepare(stack, services, SITE)
    found = await cancelled_reads.prove(trial, cancels=1_100, seed=SEED)
    assert {name: storm.mixed for name, storm in found.items()} == dict.fromkeys(found, 0)
    assert sum(storm.cancelled for storm in found.values()) >= 1_100
    assert all(storm.answered for storm in found.values())
    teeth = await cancelled_reads.teeth(trial, cancels=200, seed=SEED)
    assert all(teeth.values()), teeth
