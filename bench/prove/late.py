"""G11 where dependencies are late: what was decided while one of them did not answer is erased like all else.

The answers of each thing that a Decide depends on are held up in turn, as packets are that are lost. People whose every
text is a canary are decided for meanwhile, with their context and candidates of their own, and click; when the line is
well again the same calls are tried again, and new ones come. Then most of them are erased, and every byte of the stack
is looked through for what they were, as bench.prove.erasure does where nothing is late.
"""

import asyncio
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from bench.prove import subjects
from bench.prove.erasure import sample, scan
from bench.prove.faults import RECOVERY_S, Kind, harm
from bench.prove.links import Links, lines
from bench.prove.proof import Proof
from bench.prove.subjects import Subject, each
from bench.site import ITEMS_COUNT, PLACEMENT
from bench.world import VariantStack
from cli.connections import Services
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call

# What a Decide depends on, and the line that is held up for it.
LATE: Mapping[str, tuple[str, str]] = {
    "identity": ("decision", "identity"),
    "consent": ("decision", "consent"),
    "features": ("decision", "features"),
    "postgres": ("decision", "postgres"),
    "nats": ("decision", "nats"),
    "valkey": ("features", "valkey"),
}
# Of each person: several, because the second finds what the first left behind.
DECIDES_EACH = 2
# A click that waits for what is late is given up; it is sent again afterwards.
CLICK_TIMEOUT_S = 1.0
# One in so many is not erased: the search must find those.
KEPT_EVERY = 10
TEETH_PEOPLE = 6
UNDER_NOBODY_SQL = """
SELECT count(*) FROM events WHERE type = 'comity.decision.v1.DecisionMade' AND subject_id = ''
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """What one trial found.

    Args:
        hits: canaries and keys of the erased that were found after the erasure.
        kept_hits: those of the others.
        under_nobody: decisions that were made for nobody in particular: without one identity was never late.
        unread: files that could not be looked into.
    """

    erased: int
    hits: int
    kept_hits: int
    under_nobody: int
    unread: int

    @property
    def failures(self) -> int:
        """What was found, and what would make it prove nothing."""
        return self.hits + self.unread + (not self.kept_hits) + (not self.under_nobody)


async def prove(folder: Path, *, people_count: int) -> Proof:
    """The promise with so many people for each dependency; a decision that keeps nobody's strings must be caught."""
    right = await try_late(folder / "right", people_count=people_count)
    wrong = await try_late(
        folder / "wrong", people_count=TEETH_PEOPLE, late=("identity",), variants={"decision": "keeping"}
    )
    return Proof(
        trials=right.erased,
        failures=right.failures,
        teeth={"nobodys_strings_kept": wrong.hits},
        facts={
            "hits": right.hits,
            "kept_found": right.kept_hits,
            "under_nobody": right.under_nobody,
            "unread": right.unread,
        },
    )


async def try_late(
    folder: Path,
    *,
    people_count: int,
    late: Sequence[str] = tuple(LATE),
    variants: Mapping[str, str] | None = None,
) -> Tried:
    """One trial on a stack of its own, with so many people for each dependency that is late."""
    everybody: list[Subject] = []
    async with (
        lines({}) as links,
        subjects.erasable(folder, variants=variants or {}, redirect=links.redirect) as (stack, services),
    ):
        for name in late:
            first = len(everybody)
            people = [subjects.new_subject(first + number) for number in range(people_count)]
            await each(people, lambda one: _arrive(services, one))
            await _while_late(links, name, services, people)
            everybody += people
        await each(everybody, lambda one: subjects.know_keys(stack, one))
        await sample(stack)
        kept = everybody[::KEPT_EVERY]
        erased = [one for number, one in enumerate(everybody) if number % KEPT_EVERY]
        under_nobody = await _under_nobody(stack)
        await each(erased, lambda one: subjects.erase(services, one))
        found, found_kept = await scan(stack, erased), await scan(stack, kept)
        for hit in found.hits:
            print(f"found in {hit.path}: {len(hit.counts)} texts or keys", file=sys.stderr)
        return Tried(len(erased), len(found.canaries), len(found_kept.canaries), under_nobody, len(found.unread))


async def _arrive(services: Services, one: Subject) -> None:
    """The person agrees and logs in, and nothing is decided for them yet."""
    await subjects.agree(services, one)
    await subjects.log_in(services, one)
    await subjects.resolve(services, one)


async def _while_late(links: Links, name: str, services: Services, people: Sequence[Subject]) -> None:
    """Decide and click while the dependency does not answer; then the same again, and something new."""
    asked = {one.user: [_request(one) for _ in range(DECIDES_EACH)] for one in people}
    link = links[LATE[name]]
    harm(link, Kind.HOLD_ANSWERS)
    try:
        await each(people, lambda one: _decide(services, one, asked[one.user]))
    finally:
        link.heal()
    # Channels look for what was lost once a second.
    await asyncio.sleep(RECOVERY_S)
    await each(people, lambda one: _decide(services, one, [*asked[one.user], _request(one)]))


async def _decide(services: Services, one: Subject, requests: Sequence[decision_pb.DecideRequest]) -> None:
    """Ask, and click on what is shown; an answer that does not come is what being late is about."""
    for request in requests:
        with suppress(ServiceError):
            decision = (await call(services.decision.Decide, request, subjects.DECIDE_TIMEOUT_S)).decisions[0]
            click = subjects.click_on(decision, one, one.identities)
            await call(services.feedback.Track, feedback_pb.TrackRequest(events=[click]), CLICK_TIMEOUT_S)


def _request(one: Subject) -> decision_pb.DecideRequest:
    """A Decide that holds the person's canaries: in its context, and as candidates that no catalog has."""
    candidates = [f"i{number}" for number in range(0, ITEMS_COUNT, max(1, ITEMS_COUNT // 20))]
    return decision_pb.DecideRequest(
        request_id=uuid.uuid4().hex,
        identities=one.identities,
        placements=[
            decision_pb.PlacementRequest(
                placement_id=PLACEMENT, candidate_ids=[*candidates, one.note], excluded_item_ids=[one.city]
            )
        ],
        context={
            "hour": events_pb.ContextFact(number_value=12),
            "city": events_pb.ContextFact(string_value=one.city),
        },
        activation=events_pb.ACTIVATION_IMMEDIATE,
    )


async def _under_nobody(stack: VariantStack) -> int:
    connection = await asyncpg.connect(stack.database_url("decision"))
    try:
        return int(await connection.fetchval(UNDER_NOBODY_SQL))
    finally:
        await connection.close()
