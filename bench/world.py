"""A stack of its own with the measured site applied: what every benchmark and proof runs against."""

import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb

from bench.site import CANDIDATES_COUNT, ITEMS_COUNT, PLACEMENT, PURPOSE, write_bundle
from cli.bundle import apply_bundle, load_bundle
from cli.connections import Services
from cli.stack import Stack
from cli.stack.processes import Command
from services.chassis.rpc_client import call

SETUP_TIMEOUT_S = 30.0
# Longer than any Decide is given: what is measured is how long it takes, not when it is given up.
DECIDE_DEADLINE_S = 2.0


class VariantStack(Stack):
    """A stack whose decision service is one of bench.variants.

    Args:
        variant: module name; empty for the real service.
    """

    def __init__(self, data_dir: Path, *, variant: str, env: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(data_dir, env=env)
        self._variant = variant

    def command(self, service: str) -> Command:
        """How the service is started here."""
        return self._command(service)

    def _command(self, service: str) -> Command:
        command = super()._command(service)
        if service != "decision" or not self._variant:
            return command
        return replace(command, argv=(sys.executable, "-m", f"bench.variants.{self._variant}"))


@dataclass(frozen=True, slots=True)
class World:
    """A running stack, its stubs, and people who agreed to everything."""

    stack: VariantStack
    services: Services
    people: Sequence[str]


@asynccontextmanager
async def world(
    folder: Path,
    *,
    people_count: int,
    env: Mapping[str, Mapping[str, str]] | None = None,
    variant: str = "",
    on_start: Callable[[Mapping[str, str]], object] = lambda _: None,
) -> AsyncIterator[World]:
    """Start servers and services in *folder*, apply the site, and let *people_count* people consent.

    Args:
        env: settings over the stack's own, by service.
        variant: of the decision service; empty for the real one.
        on_start: told every service's address before anything is asked of it.
    """
    async with (
        VariantStack(folder / "data", variant=variant, env=env or {}) as stack,
        Services(stack.addresses) as services,
    ):
        on_start(stack.addresses)
        bundle, feed = write_bundle(folder / "bundle")
        await apply_bundle(load_bundle(bundle, feed=feed), services)
        people = [f"person-{k}" for k in range(people_count)]
        for person in people:
            await grant(services, person)
        yield World(stack, services, people)


def identity(person: str) -> types_pb.Identity:
    """How a backend names the person."""
    return types_pb.Identity(namespace="user_id", value=person)


async def grant(services: Services, person: str, *, timeout_s: float = SETUP_TIMEOUT_S) -> None:
    """The person agrees to personalization."""
    request = consent_pb.RecordRequest(
        request_id=uuid.uuid4().hex,
        subject=types_pb.SubjectRef(identities=[identity(person)]),
        answers=[consent_pb.PurposeAnswer(purpose=PURPOSE, state=consent_pb.CONSENT_STATE_GRANTED)],
    )
    await call(services.consent.Record, request, timeout_s)


async def revoke(services: Services, person: str, *, timeout_s: float = SETUP_TIMEOUT_S) -> None:
    """The person takes it back."""
    request = consent_pb.RevokeRequest(
        request_id=uuid.uuid4().hex, subject=types_pb.SubjectRef(identities=[identity(person)]), purposes=[PURPOSE]
    )
    await call(services.consent.Revoke, request, timeout_s)


class Requests:
    """Decide requests with rotating subjects and candidates, drawn from one seed.

    Args:
        people: whom to decide for, in turn.
    """

    def __init__(self, people: Sequence[str], *, seed: int = 0, candidates_count: int = CANDIDATES_COUNT) -> None:
        self._people = people
        rng = np.random.default_rng(seed)
        # Enough different sets that no cache of inputs could help; drawn before, so that drawing is not measured.
        self._candidates = [
            [f"i{k}" for k in rng.choice(ITEMS_COUNT, candidates_count, replace=False)] for _ in range(997)
        ]

    def __call__(self, number: int, *, deferred: bool = True) -> decision_pb.DecideRequest:
        """The request of this running number."""
        return decision_pb.DecideRequest(
            request_id=uuid.uuid4().hex,
            identities=[identity(self._people[number % len(self._people)])],
            placements=[
                decision_pb.PlacementRequest(
                    placement_id=PLACEMENT, candidate_ids=self._candidates[number % len(self._candidates)]
                )
            ],
            context={"hour": events_pb.ContextFact(number_value=number % 24)},
            activation=events_pb.ACTIVATION_DEFERRED if deferred else events_pb.ACTIVATION_IMMEDIATE,
        )


def answer_label(decision: decision_pb.PlacementDecision) -> str:
    """What kind of answer it was: the reason, or the fallback reason."""
    if decision.fallback_reason:
        return events_pb.FallbackReason.Name(decision.fallback_reason).removeprefix("FALLBACK_REASON_")
    return events_pb.Reason.Name(decision.reason).removeprefix("REASON_")
