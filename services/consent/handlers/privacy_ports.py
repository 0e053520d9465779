"""What the rights of a person need from the outside."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.chassis.clock import Clock
from services.chassis.ports import Access, AccessLog
from services.consent.domain.commands import Person
from services.consent.domain.erasure import Erasure, Step
from services.consent.domain.receipts import Counts, RecordedAnswer, Signed, Terms
from services.consent.handlers.ledger import IdentityReader

# What a service hands out or says of itself: carried from there to the caller as it is.
Page = Any
Description = Any


class Participant(Protocol):
    """A service that holds something about people."""

    async def take(self, step: Step, erasure_id: str, member_ids: Sequence[str]) -> Counts:
        """Take a step of an erasure; again: the same counts.

        Raises:
            ServiceError: an outage; the step is taken again later.
        """
        ...

    def export(self, member_ids: Sequence[str]) -> AsyncIterator[Page]:
        """Everything it holds about these members, in pages that are not empty.

        Raises:
            ServiceError: UNAVAILABLE (PARTICIPANT_UNAVAILABLE), naming it.
        """
        ...

    async def describe(self) -> Description:
        """What it keeps where.

        Raises:
            ServiceError: UNAVAILABLE (PARTICIPANT_UNAVAILABLE), naming it.
        """
        ...


class Rectifier(Protocol):
    """Who can put recorded behavior right."""

    async def rectify(self, member_ids: Sequence[str], request: Any) -> int:
        """Put a property right; how many events it changed.

        Raises:
            ServiceError: a refusal of the request; UNAVAILABLE (PARTICIPANT_UNAVAILABLE).
        """
        ...


class Receipts(Protocol):
    """What receipts are made of."""

    async def change(self, member_ids: Sequence[str], consent_version: int) -> tuple[str, list[RecordedAnswer]] | None:
        """The member and what the command recorded that made its ledger this version; 0: the newest of all members.

        Of several members the first that has the version. None where there is none.
        """
        ...

    async def controller(self) -> str:
        """Who answers for people's data now, as receipts name it."""
        ...

    async def terms(self, answers: Sequence[RecordedAnswer]) -> tuple[str, str, Mapping[str, Terms]]:
        """The purposes as they were declared when the answers were recorded, with the controller and the version."""
        ...


class Signer(Protocol):
    """The site's own signature."""

    @property
    def public_key(self) -> bytes:
        """What its signatures verify under: 32 bytes."""
        ...

    def sign(self, receipt: bytes) -> Signed:
        """The receipt, signed."""
        ...


class ErasureLedger(Protocol):
    """The erasures, each with what was done of it."""

    async def begin(
        self, erasure_id: str, person: Person, request_id: str, digest: bytes, access: Access
    ) -> tuple[str, bool]:
        """In one transaction: revoke every purpose under every member, close the members' ledgers, record the request.

        Returns:
            The erasure's id, an earlier one where the request id was applied before; whether it was begun now.

        Raises:
            ServiceError: FAILED_PRECONDITION (ERASURE_RUNNING, SUBJECT_ERASED), ALREADY_EXISTS (REQUEST_ID_REUSED),
                UNAVAILABLE.
        """
        ...

    async def begun(self, request_id: str, digest: bytes) -> str | None:
        """The erasure that this request began; None: it began none.

        Raises:
            ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED).
        """
        ...

    async def find(self, erasure_id: str) -> Erasure | None:
        """An erasure as it stands."""
        ...

    async def naming(self, member_ids: Sequence[str]) -> list[tuple[str, bool]]:
        """Erasures that name any of these members, and whether each runs."""
        ...

    async def running(self) -> list[Erasure]:
        """Those that are not completed, the oldest first; a bounded number."""
        ...

    async def after(self, number: int) -> list[Erasure]:
        """A page of all erasures after this number, in order, without their steps."""
        ...

    async def took(self, erasure_id: str, service: str, step: Step, counts: Counts) -> None:
        """Record that a service took a step; again: nothing."""
        ...

    async def waits(self, erasure_id: str, service: str, step: Step, reason: str) -> None:
        """Note why a step is not taken yet."""
        ...

    async def complete(self, erasure_id: str, sign: Callable[[Erasure], Signed]) -> None:
        """Record that everything was done, with the receipt that *sign* makes of the completed erasure; once."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """What the rights need from the outside.

    Args:
        participants: by name; every one of domain.erasure.SERVICES.
    """

    erasures: ErasureLedger
    participants: Mapping[str, Participant]
    identity: IdentityReader
    receipts: Receipts
    rectifier: Rectifier
    accesses: AccessLog
    signer: Signer
    clock: Clock
