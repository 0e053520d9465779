"""Attempts under one id, on a log that is late, loses answers and fails: what proves itself is what the log holds."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.variants.overriding import overriding
from services.chassis.errors import ServiceError
from services.decision.domain.record import DecisionRecord
from services.decision.domain.request import Answer, Identity, Person
from services.decision.domain.vocabulary import Activation, FallbackReason, Level, Reason
from services.decision.handlers import corrections, decide
from tests.unit.decision.fakes import DEAD, Harness, request
from tests.unit.decision.world import MEMBER, POLICY, site
from tests.virtual_time import in_virtual_time, run

CERTAIN = site(policy=replace(POLICY, epsilon=0.0))
DEFAULT = ["spring-sale", "gift-card"]
# Of virtual time. A Decide has 60 s; what takes LATE_S has not come when it answers, and whatever an attempt left
# behind has happened by AFTER_S.
LATE_S, AFTER_S = 100.0, 10_000.0
# Whom identity does not know in time.
LATE: tuple[Identity, ...] = (("user_id", "late"),)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one call of the log: when it happens, and how long its answer takes; None: never."""

    happens_s: float | None = 0.0
    answers_s: float | None = 0.0


PROMPT = Fate()
FATES = (PROMPT, Fate(LATE_S), Fate(0.0, LATE_S), Fate(0.0, None), Fate(None))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One Decide under the id: when it begins, and whether identity is late for it."""

    begins_s: float = 0.0
    identity_late: bool = False


class Life:
    """Attempts, and a log whose calls have these fates, one after the other; later calls are prompt."""

    def __init__(self, attempts: Sequence[Attempt], fates: Sequence[Fate]) -> None:
        self.attempts = attempts
        self.harness = Harness(CERTAIN)
        self._fates = iter(fates)
        self._happening: list[asyncio.Task[Any]] = []
        log: Any = self.harness.log
        for name in ("add", "amend", "find"):
            setattr(log, name, self._fated(getattr(log, name)))
        resolve = self.harness.identity.resolve

        async def resolved(identities: tuple[Identity, ...]) -> Person:
            if identities == LATE:
                raise DEAD
            return await resolve(identities)

        self.harness.identity.resolve = resolved  # type: ignore[method-assign]

    async def lived(self) -> list[Answer]:
        """The answers, once nothing is on its way any more."""
        answers = await asyncio.gather(*map(self._decide, self.attempts))
        while self.harness.corrections._pending or not all(task.done() for task in self._happening):
            await asyncio.wait({*self.harness.corrections._pending, *self._happening})
        return answers

    async def _decide(self, attempt: Attempt) -> Answer:
        await asyncio.sleep(attempt.begins_s)
        asked = request() if not attempt.identity_late else replace(request(), identities=LATE)
        return (await self.harness.decide(asked)).decisions[0]

    def _fated(self, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: object) -> Any:
            fate = next(self._fates, PROMPT)
            if fate.happens_s is None:
                raise DEAD
            # What was sent happens, whether or not anybody still waits for it.
            happening = asyncio.ensure_future(_later(fate.happens_s, work, args))
            happening.add_done_callback(lambda task: task.exception())
            self._happening.append(happening)
            result = await asyncio.shield(happening)
            if fate.answers_s is None:
                raise DEAD
            await asyncio.sleep(fate.answers_s)
            return result

        return call

    async def problems(self, answers: Sequence[Answer]) -> Iterator[str]:
        """What the answers claim and the log does not hold."""
        stream = await self.harness.log.store.read_stream(answers[0].decision_id)
        record = (await self.harness.logged(answers[0].decision_id)) if stream else None
        return _problems(answers, record, {event.subject_id for event in stream})


async def _later(delay_s: float, work: Callable[..., Awaitable[Any]], args: tuple[object, ...]) -> Any:
    await asyncio.sleep(delay_s)
    return await work(*args)


def _problems(answers: Sequence[Answer], record: DecisionRecord | None, member_ids: set[str]) -> Iterator[str]:
    if len(member_ids) != 1:
        yield f"the stream is about {len(member_ids)} members"
    if record is None:
        yield "what was answered is not in the log"
        return
    for answer in answers:
        if answer.exposure_token or answer.learnable:
            yield from _unlike(answer, record)
        elif answer.layer is not Level.UNSPECIFIED or answer.choice.slate.item_ids != DEFAULT:
            yield "an answer that proves nothing is not the default"
    are_mixed = any(answer.choice.slate.item_ids != record.choice.slate.item_ids for answer in answers)
    if record.default_also_answered is not are_mixed:
        yield f"default_also_answered is {record.default_also_answered}"
    if are_mixed and record.choice.learnable:
        yield "learnable, and nobody knows what was shown"


def _unlike(answer: Answer, record: DecisionRecord) -> Iterator[str]:
    if answer.choice.slate != record.choice.slate:
        yield "the slate is not the log's"
    if (answer.choice.reason, answer.choice.fallback_reason) != (record.choice.reason, record.choice.fallback_reason):
        yield "the reason is not the log's"
    if answer.layer is not record.layer:
        yield "the layer is not the log's"
    if answer.learnable is not record.choice.learnable and not record.default_also_answered:
        yield "learnable is not the log's"


def all_lives() -> Iterator[tuple[tuple[Attempt, ...], tuple[Fate, ...]]]:
    """Two attempts at once, on each other's heels, and long after each other; identity late for none or for one."""
    for begins_s in (0.0, 1.0, AFTER_S):
        for late in ((False, False), (True, False), (False, True)):
            attempts = (Attempt(0.0, late[0]), Attempt(begins_s, late[1]))
            for fates in itertools.product(FATES, repeat=3):
                yield attempts, fates


async def _first_problem() -> str:
    """The first that a life has, and the life; empty when none has any."""
    for attempts, fates in all_lives():
        life = Life(attempts, fates)
        for problem in await life.problems(await life.lived()):
            return f"{problem}: {attempts} {fates}"
    return ""


def test_what_proves_itself_is_what_the_log_holds() -> None:
    """Of two attempts, whatever becomes of the first three calls of the log."""
    assert run(_first_problem()) == ""


@given(
    attempts=st.lists(
        st.builds(Attempt, st.sampled_from((0.0, 1.0, 50.0, AFTER_S)), st.booleans()), min_size=2, max_size=4
    ),
    fates=st.lists(st.sampled_from(FATES), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_any_number_of_attempts_agrees_with_the_log(attempts: list[Attempt], fates: list[Fate]) -> None:
    """Up to four of them, and a log that is unwell for much longer."""

    async def live() -> list[str]:
        life = Life(attempts, fates)
        return list(await life.problems(await life.lived()))

    assert run(live()) == []


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [(corrections, "settled", overriding), (decide, "is_answerable", lambda *_: True)],
    ids=["corrections_override_others", "retries_do_not_confirm"],
)
def test_the_lives_catch_a_wrong_design(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, wrong: Callable[..., object]
) -> None:
    """They would mean nothing if each design passed them."""
    monkeypatch.setattr(module, name, wrong)
    assert run(_first_problem()).startswith("the slate is not the log's")


async def slate_and_default(harness: Harness, activation: Activation) -> tuple[Answer, Answer]:
    """A slate that was answered, and the default that a retry was answered while the log was away."""
    asked = replace(request(), activation=activation)
    first = (await harness.decide(asked)).decisions[0]
    harness.log.fails = DEAD
    again = (await harness.decide(asked)).decisions[0]
    harness.log.fails = None
    await asyncio.gather(*harness.corrections._pending)
    return first, again


@in_virtual_time
async def test_a_retry_while_the_log_is_away_rewrites_nothing() -> None:
    """The slate that was shown stays the decision; that the default was answered too is said, and nothing learned."""
    harness = Harness(CERTAIN)
    first, again = await slate_and_default(harness, Activation.IMMEDIATE)
    assert (again.choice.slate.item_ids, again.exposure_token, again.learnable) == (DEFAULT, b"", False)
    assert (again.choice.fallback_reason, again.layer) == (FallbackReason.LOG_UNAVAILABLE, Level.UNSPECIFIED)
    record = await harness.logged(first.decision_id)
    assert (record.choice.slate, record.choice.reason) == (first.choice.slate, Reason.RANKED)
    assert (record.default_also_answered, record.choice.learnable) == (True, False)
    third = (await harness.decide(request())).decisions[0]
    assert (third.choice.slate, third.learnable, third.layer) == (first.choice.slate, False, first.layer)
    assert third.exposure_token == first.exposure_token


@in_virtual_time
async def test_a_deferred_decision_stays_learnable_beside_a_default() -> None:
    """Its token comes back from where it was shown: that tells the two apart."""
    harness = Harness(CERTAIN)
    first, _ = await slate_and_default(harness, Activation.DEFERRED)
    record = await harness.logged(first.decision_id)
    assert (record.default_also_answered, record.choice.learnable) == (True, True)


async def test_a_version_about_another_member_is_refused() -> None:
    """Sealed for somebody else it would be readable under neither."""
    harness = Harness(CERTAIN)
    decided = (await harness.decide(request())).decisions[0]
    logged = await harness.log.find(decided.decision_id)
    assert logged is not None
    for member_id in ("", MEMBER[::-1]):
        with pytest.raises(ServiceError, match="its own member"):
            await harness.log.amend(logged, replace(logged.record, member_id=member_id))


@in_virtual_time
async def test_what_an_attempt_could_not_record_is_recorded_as_it_was_answered() -> None:
    """The log never took version 1: the default takes its place, so that nothing can come later."""
    harness = Harness(CERTAIN)
    harness.log.fails = DEAD
    answer = (await harness.decide(request())).decisions[0]
    harness.log.fails = None
    await asyncio.gather(*harness.corrections._pending)
    record = await harness.logged(answer.decision_id)
    assert (record.choice.slate.item_ids, record.final, record.choice.learnable) == (DEFAULT, True, False)


async def test_another_request_under_the_id_says_nothing_about_the_first() -> None:
    """Its default is no answer of the decision that is there."""
    harness = Harness(CERTAIN)
    first = (await harness.decide(request())).decisions[0]
    harness.log.fails = DEAD
    await harness.decide(request(digest=b"e" * 32))
    harness.log.fails = None
    await asyncio.gather(*harness.corrections._pending)
    assert not (await harness.logged(first.decision_id)).default_also_answered
