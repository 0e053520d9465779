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

from bench.site import CANDIDATES_COUNT, HOLDOUT_SHARE, ITEMS_COUNT, PLACEMENT, PURPOSE, write_bundle
from cli.bundle import apply_bundle, load_bundle
from cli.connections import Services
from cli.stack import Stack
from cli.stack.processes import Command
from cli.stack.replicas import service_of
from services.chassis.rpc_client import call
from services.chassis.words import enum_word

SETUP_TIMEOUT_S = 30.0
# Longer than any Decide is given: what is measured is how long it takes, not when it is given up.
DECIDE_DEADLINE_S = 2.0


# What a process' environment becomes, by the process' name.
Redirect = Callable[[str, Mapping[str, str]], Mapping[str, str]]


class VariantStack(Stack):
    """A stack in which services can be ones of bench.variants, and call each other over detours.

    Args:
        variants: module of bench.variants by service; the real one where there is none.
        redirect: gives the environment of each process.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        variants: Mapping[str, str],
        replicas: Mapping[str, int],
        env: Mapping[str, Mapping[str, str]],
        redirect: Redirect,
        disposable: bool,
    ) -> None:
        super().__init__(data_dir, env=env, replicas=replicas, disposable=disposable)
        self._variants = dict(variants)
        self._settings: dict[str, Mapping[str, str]] = {}
        self._redirect = redirect

    def command(self, name: str) -> Command:
        """How the process is started here."""
        return self._command(name)

    async def become(self, service: str, variant: str = "", **settings: str) -> None:
        """Start every process of the service again: as this variant, with these settings over the stack's own."""
        self._variants[service] = variant
        self._settings[service] = {f"COMITY_{service.upper()}_{key.upper()}": value for key, value in settings.items()}
        for name in self.replicas(service):
            await self.restart(name)

    def _command(self, name: str) -> Command:
        command = super()._command(name)
        service = service_of(name)
        variant = self._variants.get(service)
        argv = (sys.executable, "-m", f"bench.variants.{variant}") if variant else command.argv
        env = {**command.env, **self._settings.get(service, {})}
        return replace(command, argv=argv, env=self._redirect(name, env))


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
    variants: Mapping[str, str] | None = None,
    replicas: Mapping[str, int] | None = None,
    redirect: Redirect = lambda _, env: env,
    disposable: bool = False,
    holdout_share: float = HOLDOUT_SHARE,
) -> AsyncIterator[World]:
    """Start servers and services in *folder*, apply the site, and let *people_count* people consent.

    Args:
        env: settings over the stack's own, by service.
        variants, redirect: see VariantStack.
        replicas, disposable: see Stack.
        holdout_share: of the people, who always get the default.
    """
    async with (
        VariantStack(
            folder / "data",
            variants=variants or {},
            replicas=replicas or {},
            env=env or {},
            redirect=redirect,
            disposable=disposable,
        ) as stack,
        Services(stack.addresses, model_key=stack.data_dir.model_key) as services,
    ):
        bundle, feed = write_bundle(folder / "bundle", holdout_share=holdout_share)
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
    await call(services.consent.Record, grant_request(person), timeout_s)


async def revoke(services: Services, person: str, *, timeout_s: float = SETUP_TIMEOUT_S) -> None:
    """The person takes it back."""
    await call(services.consent.Revoke, revoke_request(person), timeout_s)


def grant_request(person: str) -> consent_pb.RecordRequest:
    """A new command by which the person agrees to personalization."""
    return consent_pb.RecordRequest(
        request_id=uuid.uuid4().hex,
        subject=types_pb.SubjectRef(identities=[identity(person)]),
        answers=[consent_pb.PurposeAnswer(purpose=PURPOSE, state=consent_pb.CONSENT_STATE_GRANTED)],
    )


def revoke_request(person: str) -> consent_pb.RevokeRequest:
    """A new command by which the person takes it back."""
    return consent_pb.RevokeRequest(
        request_id=uuid.uuid4().hex, subject=types_pb.SubjectRef(identities=[identity(person)]), purposes=[PURPOSE]
    )


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
        return self.of(self._people[number % len(self._people)], number, deferred=deferred)

    def of(self, person: str, number: int, *, deferred: bool = True) -> decision_pb.DecideRequest:
        """The request of this running number, for this person."""
        return decision_pb.DecideRequest(
            request_id=uuid.uuid4().hex,
            identities=[identity(person)],
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
        return enum_word(events_pb.FallbackReason.DESCRIPTOR, decision.fallback_reason)
    return enum_word(events_pb.Reason.DESCRIPTOR, decision.reason)
