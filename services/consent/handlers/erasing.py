"""What goes on after Erase was answered: every step at every service, until all are taken, whatever fails meanwhile.

All progress lies in the ledger of erasures, so a worker that is killed anywhere is continued by the next: a step whose
effect was not recorded is taken again, and services answer the same counts.
"""

import asyncio
import math
from functools import partial

import structlog

from services.chassis.errors import Kind, ServiceError
from services.chassis.lag import Lag
from services.chassis.tracing import COMITY_ERASURE_STEP, root_span, span
from services.consent.domain.erasure import SERVICES, Erasure, Step, delay_s_after, next_steps
from services.consent.domain.receipts import Signed, erasure_receipt
from services.consent.handlers.privacy_ports import Ports
from services.consent.metrics import ERASURE_OLDEST_S, ERASURES

_log = structlog.get_logger(__name__)


async def suppress_everywhere(ports: Ports, erasure_id: str) -> None:
    """Try once to have the person on every suppress list; what fails is left to the worker."""
    erasure = await ports.erasures.find(erasure_id)
    assert erasure is not None, "it was begun"
    missing = [name for name in SERVICES if (name, Step.SUPPRESS) not in erasure.taken]
    await asyncio.gather(*(_take(ports, erasure, name, Step.SUPPRESS) for name in missing))


class EraseWorker:
    """Continues erasures; run by one replica at a time, though two at once would only do things twice."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        # (failures in a row, when to try again); lost with the process, which tries at once then.
        self._failures: dict[str, tuple[int, float]] = {}

    async def step(self) -> bool:
        """Continue every running erasure as far as it goes now; False when nothing moved.

        Raises:
            ServiceError: UNAVAILABLE when the ledger is; the step can be taken again.
        """
        running = await self._ports.erasures.running()
        now = self._ports.clock.now()
        self._failures = {one.erasure_id: self._failures.get(one.erasure_id, (0, 0.0)) for one in running}
        moved = False
        for erasure in running:
            if now.timestamp() >= self._failures[erasure.erasure_id][1]:
                moved |= await self._continue_or_note(erasure)
        return moved

    async def watch_age(self) -> None:
        """Tell for ever how many erasures run and how old the oldest is; every replica does, whoever continues them."""

        async def oldest_age_s() -> float:
            running = await self._ports.erasures.running()
            now = self._ports.clock.now()
            ERASURES.labels("running").set(len(running))
            return max(((now - one.requested_at).total_seconds() for one in running), default=0.0)

        # While the ledger is away the oldest that runs ages; where none runs, none does.
        await Lag(ERASURE_OLDEST_S, stale_s=math.inf).watch(oldest_age_s)

    async def _continue_or_note(self, erasure: Erasure) -> bool:
        """Continue an erasure; one that cannot be is tried again later, and keeps no other waiting.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        try:
            return await self._continue(erasure)
        except Exception as error:
            if isinstance(error, ServiceError) and error.passes:
                raise
            _log.error("erasure not continued", erasure_id=erasure.erasure_id, exc_info=error)
            self._note(erasure.erasure_id, failed=True)
            return False

    async def _continue(self, erasure: Erasure) -> bool:
        """Take what can be taken, or complete it; whether anything was done."""
        with root_span("privacy.erasure.continue"):
            due = next_steps(erasure.taken)
            if not due:
                sign = partial(self._sign, await self._ports.receipts.controller())
                await self._ports.erasures.complete(erasure.erasure_id, sign)
                ERASURES.labels("completed").inc()
                _log.info("erasure completed", erasure_id=erasure.erasure_id)
                return True
            # One service that is away does not keep the others from the step; all of them from the next.
            done = [await _take(self._ports, erasure, service, step) for service, step in due]
            self._note(erasure.erasure_id, failed=not all(done))
            return any(done)

    def _note(self, erasure_id: str, *, failed: bool) -> None:
        count = self._failures[erasure_id][0] + 1 if failed else 0
        until_s = self._ports.clock.now().timestamp() + delay_s_after(count) if failed else 0.0
        self._failures[erasure_id] = (count, until_s)

    def _sign(self, controller: str, erasure: Erasure) -> Signed:
        assert erasure.completed_at is not None, "only what is done has a receipt"
        content = erasure_receipt(
            controller,
            erasure.erasure_id,
            erasure.member_ids,
            requested_at=erasure.requested_at,
            completed_at=erasure.completed_at,
            steps=erasure.steps_taken(),
        )
        return self._ports.signer.sign(content)


async def _take(ports: Ports, erasure: Erasure, service: str, step: Step) -> bool:
    """Have a service take a step and record it; False where it could not, with why in the ledger.

    Raises:
        ServiceError: the ledger's.
    """
    with span("privacy.erasure.step", {COMITY_ERASURE_STEP: step.name}):
        try:
            counts = await ports.participants[service].take(step, erasure.erasure_id, erasure.member_ids)
        except ServiceError as error:
            log = _log.warning if error.kind in (Kind.UNAVAILABLE, Kind.DEADLINE) else _log.error
            log("erasure waits", erasure_id=erasure.erasure_id, service=service, step=step.name, reason=error.reason)
            await ports.erasures.waits(erasure.erasure_id, service, step, error.reason)
            return False
        await ports.erasures.took(erasure.erasure_id, service, step, counts)
        return True
